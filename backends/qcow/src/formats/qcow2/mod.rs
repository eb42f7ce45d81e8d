//! An open qcow2 image: the engine, the files, and the system calls between them.

pub(crate) mod check;
pub(crate) mod compressed;
pub(crate) mod engine;
pub(crate) mod journal;
pub(crate) mod layout;
pub(crate) mod rewrite;

mod amend;
mod bitmaps;
mod commit;
mod create;
mod format;
mod info;
mod io;
mod missing;
mod plan;
mod preallocation;
mod recovery;
mod resize;
mod run;
mod snapshot;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use crate::error::{Error, ErrorKind, Result};
use crate::formats::qcow2::check::{Check, Checked};
use crate::formats::qcow2::engine::Engine;
use crate::formats::qcow2::journal::file::{Beside, JournalFile};
use crate::formats::qcow2::journal::session::{self, Session};
use crate::formats::qcow2::layout::address::HostOffset;
use crate::formats::qcow2::layout::bitmap;
use crate::formats::qcow2::layout::extension::kind;
use crate::formats::qcow2::layout::feature;
use crate::formats::qcow2::layout::header::Header;
use crate::formats::qcow2::layout::snapshot_table::{Reading, Snapshot, SnapshotTable};
use crate::formats::references::References;
use crate::options::{self, CompressionType, Discard, OpenOptions};
use crate::report::{CheckResult, Repair, SnapshotInfo};
use crate::storage::Storage;
use crate::storage::group_commit::GroupCommit;
use crate::storage::range_lock::RangeLock;
use bitmaps::Bitmaps;
use recovery::{Kept, Lost, Recovered};

pub use bitmaps::DirtyRanges;
pub(super) use format::ENTRY;

/// An open qcow2 image.
pub(crate) struct Qcow2 {
    storage: Arc<dyn Storage>,
    /// The external data file and its path.
    data: Option<(Box<dyn Storage>, PathBuf)>,
    engine: RwLock<Engine>,
    commits: GroupCommit,
    /// Held while the host reserves space for a table.
    reserving: Mutex<()>,
    ranges: RangeLock,
    /// The compressed cluster read last: its host offset and its content.
    decompressed: Mutex<Option<(HostOffset, Arc<Vec<u8>>)>>,
    /// Whether clusters in use may lie in holes of the file; determined at the first use.
    preallocated: std::sync::OnceLock<bool>,
    /// Size of the disk; kept apart from the engine so that asking for it needs no lock.
    size: AtomicU64,
    snapshots: Mutex<Vec<Snapshot>>,
    bitmaps: Bitmaps,
    /// What was repaired when the image was opened, because it had not been closed.
    repaired: std::sync::OnceLock<CheckResult>,
    cluster_size: u64,
    /// Whether clusters are compressed with zstd; changes only while the image has no compressed cluster.
    zstd: AtomicBool,
    external: bool,
    encrypted: bool,
    writable: bool,
    for_check: bool,
    refuse_missing: bool,
    discard: Discard,
    /// It was closed: dropping it does nothing more.
    closed: AtomicBool,
    /// The journal, if one is kept.
    kept: std::sync::OnceLock<Kept>,
    /// A journal that the image needs and that cannot be used.
    lost: Mutex<Option<Lost>>,
}

impl Qcow2 {
    /// Opens an image. Reads the header and the snapshot table; opens no other file.
    pub(crate) fn open(
        storage: Arc<dyn Storage>,
        options: &OpenOptions,
        journal: Option<Beside>,
    ) -> Result<Self> {
        let Recovered {
            storage,
            journal,
            lost,
        } = Self::recover(storage, options, journal)?;
        let mut header = read_header(&*storage)?;
        if !options.for_info || options.writable {
            header.check_encryption()?;
        }
        if !options.for_check {
            header.check_refcount_table()?;
        }
        if options.writable && header.incompatible & feature::CORRUPT != 0 && !options.for_check {
            return Err(Error::new(
                ErrorKind::Corrupt,
                "qcow2: Image is corrupt; cannot be opened read/write",
            ));
        }
        let snapshots = if options.for_check {
            // The check reads them itself and reports what is wrong with them.
            read_snapshots(&*storage, &header).unwrap_or_default()
        } else {
            read_snapshots(&*storage, &header)?
        };
        if let Some(wanted) = &options.snapshot {
            select_snapshot(&mut header, &snapshots, wanted)?;
        }
        let mut image = Self::new(storage, header, snapshots, options);
        image.lost = Mutex::new(lost);
        if options.writable && !options.for_check {
            image.prepare_for_writing(journal, &options.journal)?;
        } else if let Some(journal) = journal.filter(|_| options.writable) {
            // The header must not name a journal that is removed.
            image.end_journal(&mut *image.engine_exclusive())?;
            journal.remove();
        }
        Ok(image)
    }

    fn new(
        storage: Arc<dyn Storage>,
        header: Header,
        snapshots: Vec<Snapshot>,
        options: &OpenOptions,
    ) -> Self {
        Self {
            size: header.size.into(),
            cluster_size: 1 << header.cluster_bits,
            zstd: (header.compression == CompressionType::Zstd).into(),
            external: header.external_data(),
            encrypted: header.check_encryption().is_err(),
            engine: RwLock::new(Engine::new(header, options.cache_bytes, options.writable)),
            commits: GroupCommit::default(),
            reserving: Mutex::default(),
            ranges: RangeLock::default(),
            decompressed: Mutex::new(None),
            preallocated: std::sync::OnceLock::new(),
            snapshots: Mutex::new(snapshots),
            bitmaps: Bitmaps::default(),
            repaired: std::sync::OnceLock::new(),
            writable: options.writable,
            refuse_missing: options.refuse_missing,
            for_check: options.for_check,
            discard: options.discard,
            closed: false.into(),
            kept: std::sync::OnceLock::new(),
            lost: Mutex::new(None),
            data: None,
            storage,
        }
    }

    /// What must be done before the first write: repair after an unclean end, clear what this library does not
    /// maintain, register where metadata lies.
    fn prepare_for_writing(
        &self,
        journal: Option<JournalFile>,
        wanted: &options::Journal,
    ) -> Result<()> {
        if self.engine_exclusive().header.incompatible & feature::DIRTY != 0 {
            let result = self.check(Repair::All)?;
            if !result.is_sound() {
                return Err(Error::corrupt(
                    "the image was not closed properly and cannot be repaired",
                ));
            }
            self.repaired.get_or_init(|| result);
        } else {
            self.register_all_metadata()?;
        }
        let mut engine = self.engine_exclusive();
        let mut header = engine.header.clone();
        session::end(&mut header);
        header.autoclear &= feature::AUTOCLEAR_KNOWN;
        if engine.header != header {
            self.update_header(&mut engine, header)?;
        }
        drop(engine);
        self.load_bitmaps()?;
        match (journal, wanted) {
            (Some(journal), options::Journal::Replay) => journal.remove(),
            (journal, _) => self.keep_journal(&mut self.engine_exclusive(), journal)?,
        }
        Ok(())
    }

    fn register_all_metadata(&self) -> Result<()> {
        let mut engine = self.engine_exclusive();
        let geometry = *engine.geometry();
        let header = engine.header.clone();
        let clusters = |bytes: u64| geometry.clusters_for(bytes);
        let len = self
            .storage
            .len()
            .map_err(|error| Error::io("cannot find the size", error))?;
        if (header.l1_size > 0 && header.l1_offset >= len) || header.refcount_table_offset >= len {
            return Err(Error::corrupt(
                "the L1 table or the refcount table lies beyond the end of the file",
            ));
        }
        engine.register_metadata(
            "L1 table",
            HostOffset(header.l1_offset),
            clusters(u64::from(header.l1_size) * 8),
        )?;
        let table_clusters = u64::from(header.refcount_table_clusters);
        engine.register_metadata(
            "refcount table",
            HostOffset(header.refcount_table_offset),
            table_clusters,
        )?;
        let table = SnapshotTable::read(&*self.storage, &header, Reading::Strict)?;
        engine.register_metadata(
            "snapshot table",
            HostOffset(header.snapshots_offset),
            clusters(table.bytes),
        )?;
        // Snapshots whose L1 table cannot be where the entry says can only be listed.
        let sound = |snapshot: &&Snapshot| snapshot.check(&geometry).is_ok();
        for snapshot in table.entries.iter().filter(sound) {
            let bytes = u64::from(snapshot.l1_size) * 8;
            engine.register_metadata(
                "L1 table of a snapshot",
                HostOffset(snapshot.l1_offset),
                clusters(bytes),
            )?;
        }
        if let Some(extension) = bitmap::BitmapsExtension::of(&header)? {
            let (offset, bytes) = (
                HostOffset(extension.directory_offset),
                extension.directory_size,
            );
            engine.register_metadata("bitmap directory", offset, clusters(bytes))?;
        }
        let l1 = self.run_locked(&mut engine, Engine::l1_words)?;
        let refcount_table = self.run_locked(&mut engine, Engine::refcount_table_words)?;
        engine.register_tables(&l1, &refcount_table, len)
    }

    pub(crate) fn references(&self) -> References {
        let engine = self.engine_exclusive();
        let header = &engine.header;
        References {
            backing: header.backing.clone(),
            backing_format: header.text_extension(kind::BACKING_FORMAT),
            data_file: header
                .external_data()
                .then(|| header.text_extension(kind::DATA_FILE).unwrap_or_default()),
        }
    }

    pub(crate) fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn compression(&self) -> CompressionType {
        match self.zstd.load(Ordering::Relaxed) {
            true => CompressionType::Zstd,
            false => CompressionType::Zlib,
        }
    }

    /// Flushes, brings refcounts up to date, and clears the dirty bit.
    pub(crate) fn close(&self) -> Result<()> {
        if !self.writable || self.closed.load(Ordering::Acquire) {
            return Ok(());
        }
        self.put_in_order()?;
        self.closed.store(true, Ordering::Release);
        Ok(())
    }

    fn put_in_order(&self) -> Result<()> {
        {
            let engine = self.engine_read();
            match engine.check_usable() {
                // Nothing may be written any more, and nothing is unwritten.
                Err(_) if engine.is_clean() => return Ok(()),
                usable => usable?,
            }
        }
        self.store_bitmaps()?;
        let mut engine = self.engine_exclusive();
        self.commit_all(&mut engine, true)?;
        let mut header = engine.header.clone();
        if !self.for_check {
            header.incompatible &= !feature::DIRTY;
        }
        // A journal that could not be used is still needed by the next process.
        if self
            .lost
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_none()
        {
            session::end(&mut header);
        }
        if header == engine.header {
            self.sync(&mut engine)?;
        } else {
            self.update_header(&mut engine, header)?;
        }
        engine.set_journal(None);
        if let Some(file) = self.kept.get().and_then(|kept| kept.file.as_ref()) {
            file.remove();
        }
        Ok(())
    }

    /// Checks the image, and repairs it as far as `repair` allows. Nothing else happens to it meanwhile.
    pub(crate) fn check(&self, repair: Repair) -> Result<CheckResult> {
        let _guard = self.ranges.exclusive(0..u64::MAX);
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        // What looks like a leak may be in use by what the journal records.
        let repair = match repair {
            Repair::Leaks if lost.is_some() => Repair::None,
            repair => repair,
        };
        if let Some(lost) = lost.as_ref().filter(|_| repair != Repair::None) {
            lost.check_repair()?;
        }
        let mut engine = self.engine_exclusive();
        if self.writable && engine.check_usable().is_ok() {
            while !engine.is_clean() {
                self.commit(&mut engine, true)?;
            }
        }
        let Checked {
            mut result,
            mut header,
            incomplete,
        } = Check::new(&*self.storage, &engine.header, repair)?
            .giving_up_lost(self.for_check)
            .run();
        if repair == Repair::None {
            if let Some(lost) = &*lost {
                lost.report(&mut result);
            }
            return Ok(result);
        }
        let old = engine.header.clone();
        engine.restart(header.clone());
        if let Some((entries, bytes, findings)) = incomplete {
            self.replace_snapshot_table(&mut engine, entries, bytes)?;
            result.corruptions -= findings;
            result.corruptions_fixed += findings;
            header = engine.header.clone();
        }
        if result.is_sound() {
            header.incompatible &= !(feature::DIRTY | feature::CORRUPT);
            header.autoclear &= feature::AUTOCLEAR_KNOWN;
            session::end(&mut header);
        }
        if !result.is_sound() {
            engine.stop("corruptions were found that cannot be repaired");
        } else if old != header {
            self.update_header(&mut engine, header)?;
        }
        drop(engine);
        match lost.take() {
            Some(given_up) if result.is_sound() => given_up.give_up(&mut result),
            kept => *lost = kept,
        }
        if result.is_sound() && !self.for_check {
            self.register_all_metadata()?;
        }
        Ok(result)
    }

    pub(crate) fn snapshots(&self) -> Vec<SnapshotInfo> {
        let snapshots = self
            .snapshots
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        snapshots
            .iter()
            .map(|snapshot| snapshot.info.clone())
            .collect()
    }
}

impl Drop for Qcow2 {
    fn drop(&mut self) {
        // Errors are reported by close, which callers call before.
        let _ = self.close();
    }
}

/// The session whose journal an image waits for, as its header has it; `None` if there is none, or no such header.
pub(crate) fn pending_session(file: &Arc<std::fs::File>) -> std::io::Result<Option<Session>> {
    let storage = crate::storage::host_file::HostFile::new(file.clone())?;
    Ok(read_header(&storage)
        .ok()
        .and_then(|header| Session::of(&header)))
}

/// Reads and parses the header.
pub(crate) fn read_header(storage: &dyn Storage) -> Result<Header> {
    let failed = |error| Error::io("cannot read the header", error);
    let mut start = [0u8; 512];
    storage
        .read(0, &mut &mut start[..], 0, 512)
        .map_err(failed)?;
    let mut cluster = vec![0u8; Header::first_cluster(&start)?];
    let len = cluster.len();
    storage
        .read(0, &mut &mut cluster[..], 0, len)
        .map_err(failed)?;
    Header::parse(&cluster)
}

fn read_snapshots(storage: &dyn Storage, header: &Header) -> Result<Vec<Snapshot>> {
    header
        .check_snapshot_table()
        .map_err(|fault| fault.of("Snapshot table"))?;
    Ok(SnapshotTable::read(storage, header, Reading::Strict)?.entries)
}

/// Makes the header's disk that of a snapshot.
fn select_snapshot(header: &mut Header, snapshots: &[Snapshot], wanted: &str) -> Result<()> {
    let found = find_snapshot(snapshots, wanted)?;
    found.check(&header.geometry())?;
    header.l1_offset = found.l1_offset;
    header.l1_size = found.l1_size;
    header.size = found.info.disk_size.unwrap_or(header.size);
    if header.geometry().l1_entries_for(header.size) > u64::from(header.l1_size) {
        return Err(Error::corrupt(format!(
            "the L1 table of snapshot {wanted} is too small"
        )));
    }
    Ok(())
}

/// By id, else by name, as QEMU looks for them.
pub(crate) fn find_snapshot<'a>(snapshots: &'a [Snapshot], wanted: &str) -> Result<&'a Snapshot> {
    snapshots
        .iter()
        .find(|snapshot| snapshot.info.id == wanted)
        .or_else(|| {
            snapshots
                .iter()
                .find(|snapshot| snapshot.info.name == wanted)
        })
        .ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("there is no snapshot '{wanted}'"),
            )
        })
}
