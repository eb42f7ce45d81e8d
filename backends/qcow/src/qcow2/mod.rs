//! An open qcow2 image: the engine, the files, and the synchronous driver between them.

mod driver;
mod facts;
mod io;
mod resize;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use crate::address::HostOffset;
use crate::engine::Engine;
use crate::error::{Error, ErrorKind, Result};
use crate::extension::kind;
use crate::feature;
use crate::header::Header;
use crate::image::References;
use crate::options::{CompressionType, Discard, OpenOptions};
use crate::range_lock::RangeLock;
use crate::report::{CheckResult, Repair, SnapshotInfo};
use crate::snapshot_table::{MAX_TABLE_BYTES, Snapshot};
use crate::storage::Storage;

/// An open qcow2 image.
pub(crate) struct Qcow2 {
    storage: Box<dyn Storage>,
    /// The external data file, and where it is.
    data: Option<(Box<dyn Storage>, PathBuf)>,
    engine: Mutex<Engine>,
    ranges: RangeLock,
    /// The compressed cluster read last: its guest offset and its content.
    decompressed: Mutex<Option<(u64, Arc<Vec<u8>>)>>,
    /// Size of the disk; kept apart from the engine so that asking for it needs no lock.
    size: std::sync::atomic::AtomicU64,
    snapshots: Mutex<Vec<Snapshot>>,
    cluster_size: u64,
    compression: CompressionType,
    external: bool,
    writable: bool,
    for_check: bool,
    discard: Discard,
}

impl Qcow2 {
    /// Opens an image. Reads the header and the snapshot table; opens no other file.
    pub(crate) fn open(storage: Box<dyn Storage>, options: &OpenOptions) -> Result<Self> {
        let mut header = read_header(&*storage)?;
        if !options.for_check {
            header.check_refcount_table()?;
        }
        if options.writable && header.incompatible & feature::CORRUPT != 0 && !options.for_check {
            return Err(Error::new(
                ErrorKind::Corrupt,
                "the image is marked corrupt and cannot be written; check it and repair it first",
            ));
        }
        let (snapshots, table_bytes) = match read_snapshots(&*storage, &header) {
            Err(_) if options.for_check => (Vec::new(), 0),
            other => other?,
        };
        if let Some(wanted) = &options.snapshot {
            select_snapshot(&mut header, &snapshots, wanted)?;
        }
        let image = Self {
            size: header.size.into(),
            cluster_size: 1 << header.cluster_bits,
            compression: header.compression,
            external: header.external_data(),
            engine: Mutex::new(Engine::new(header, options.cache_bytes, options.writable)),
            ranges: RangeLock::default(),
            decompressed: Mutex::new(None),
            snapshots: Mutex::new(snapshots),
            writable: options.writable,
            for_check: options.for_check,
            discard: options.discard,
            data: None,
            storage,
        };
        if options.writable && !options.for_check {
            image.prepare_for_writing(table_bytes)?;
        }
        Ok(image)
    }

    /// What must be done before the first write: repair after an unclean end, clear what this library does not maintain,
    /// learn where metadata is.
    fn prepare_for_writing(&self, snapshot_table_bytes: u64) -> Result<()> {
        if self.engine().header.incompatible & feature::DIRTY != 0 {
            let result = self.check(Repair::All)?;
            if result.corruptions > 0 || result.check_errors > 0 {
                return Err(Error::corrupt(
                    "the image was not closed properly and cannot be repaired",
                ));
            }
        }
        self.register_all_metadata(snapshot_table_bytes)?;
        let mut engine = self.engine();
        let known = engine.header.autoclear & feature::AUTOCLEAR_KNOWN;
        if engine.header.autoclear != known {
            let header = Header {
                autoclear: known,
                ..engine.header.clone()
            };
            self.update_header(&mut engine, header)?;
        }
        Ok(())
    }

    fn register_all_metadata(&self, snapshot_table_bytes: u64) -> Result<()> {
        let mut engine = self.engine();
        let geometry = *engine.geometry();
        let header = engine.header.clone();
        let clusters = |bytes: u64| geometry.clusters_for(bytes);
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
        if header.snapshots > 0 {
            engine.register_metadata(
                "snapshot table",
                HostOffset(header.snapshots_offset),
                clusters(snapshot_table_bytes),
            )?;
        }
        for snapshot in self
            .snapshots
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .iter()
        {
            let bytes = u64::from(snapshot.l1_size) * 8;
            engine.register_metadata(
                "L1 table of a snapshot",
                HostOffset(snapshot.l1_offset),
                clusters(bytes),
            )?;
        }
        let l1 = self.run_locked(&mut engine, Engine::l1_words)?;
        let refcount_table = self.run_locked(&mut engine, Engine::refcount_table_words)?;
        engine.register_tables(&l1, &refcount_table)
    }

    pub(crate) fn set_data_file(&mut self, data: Box<dyn Storage>, path: PathBuf) {
        self.data = Some((data, path));
    }

    pub(crate) fn references(&self) -> References {
        let engine = self.engine();
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
        self.size.load(std::sync::atomic::Ordering::Acquire)
    }

    pub(crate) fn cluster_size(&self) -> u64 {
        self.cluster_size
    }

    /// Flushes, brings refcounts up to date, and clears the dirty bit.
    pub(crate) fn close(&self) -> Result<()> {
        let mut engine = self.engine();
        if !self.writable || engine.check_usable().is_err() {
            return Ok(());
        }
        // The second time for the refcounts that the first lowered.
        for _ in 0..2 {
            if !engine.is_clean() {
                self.commit(&mut engine, true)?;
            }
        }
        if engine.header.incompatible & feature::DIRTY != 0 && !self.for_check {
            let mut header = engine.header.clone();
            header.incompatible &= !feature::DIRTY;
            return self.update_header(&mut engine, header);
        }
        self.sync(&mut engine)
    }

    pub(crate) fn snapshots(&self) -> Vec<SnapshotInfo> {
        let snapshots = self
            .snapshots
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        snapshots
            .iter()
            .map(|snapshot| snapshot.info.clone())
            .collect()
    }
}

impl Drop for Qcow2 {
    fn drop(&mut self) {
        // Whoever wants to know of errors calls close.
        let _ = self.close();
    }
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

/// Reads the snapshot table; returns its entries and its length in bytes.
pub(crate) fn read_snapshots(
    storage: &dyn Storage,
    header: &Header,
) -> Result<(Vec<Snapshot>, u64)> {
    let mut snapshots = Vec::new();
    let (mut offset, mut chunk, mut at) = (header.snapshots_offset, Vec::new(), 0);
    let mut total = 0u64;
    while snapshots.len() < header.snapshots as usize {
        // An entry has at most 40 + 1024 + 2 * 65535 bytes; a chunk holds several.
        if chunk.len() - at < 160 << 10 {
            offset += at as u64;
            at = 0;
            chunk.resize(320 << 10, 0);
            let len = chunk.len();
            storage
                .read(offset, &mut &mut chunk[..], 0, len)
                .map_err(|error| Error::io("cannot read the snapshot table", error))?;
        }
        let (snapshot, len) = Snapshot::parse(chunk.get(at..).unwrap_or_default())?;
        snapshot.check(&header.geometry())?;
        snapshots.push(snapshot);
        at += len;
        total += len as u64;
        if total > MAX_TABLE_BYTES {
            return Err(Error::corrupt("snapshot table too large"));
        }
    }
    Ok((snapshots, total))
}

/// Makes the header's disk that of a snapshot.
fn select_snapshot(header: &mut Header, snapshots: &[Snapshot], wanted: &str) -> Result<()> {
    let found = find_snapshot(snapshots, wanted)?;
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

fn not_yet() -> Error {
    Error::unsupported("not implemented")
}

#[rustfmt::skip]
impl Qcow2 {
    pub(crate) fn check(&self, _: Repair) -> Result<CheckResult> { Err(not_yet()) }
    pub(crate) fn snapshot_create(&self, _: &str) -> Result<()> { Err(not_yet()) }
    pub(crate) fn snapshot_apply(&self, _: &str) -> Result<()> { Err(not_yet()) }
    pub(crate) fn snapshot_delete(&self, _: &str) -> Result<()> { Err(not_yet()) }
    pub(crate) fn change_backing_file(&self, _: Option<&str>, _: Option<&str>) -> Result<()> { Err(not_yet()) }
}
