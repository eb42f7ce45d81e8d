//! The journal of an open image: replaying that of a process that was killed, and keeping one.

use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::formats::qcow2::check::Check;
use crate::formats::qcow2::commit::{EngineAccess, io_failed};
use crate::formats::qcow2::engine::Engine;
use crate::formats::qcow2::journal::file::{Beside, JournalFile, boot_id};
use crate::formats::qcow2::journal::progress::{self, Progress};
use crate::formats::qcow2::journal::session::{self, GO_ON, Session};
use crate::formats::qcow2::journal::{Freed, Journal, JournalContents, JournalWriter};
use crate::formats::qcow2::layout::address::HostOffset;
use crate::formats::qcow2::layout::feature;
use crate::formats::qcow2::layout::geometry::OFFSET_MASK;
use crate::formats::qcow2::layout::header::{Header, place};
use crate::formats::qcow2::{Qcow2, read_header};
use crate::options::OpenOptions;
use crate::report::{CheckResult, Repair};
use crate::storage::Storage;
use crate::storage::scratch::Scratch;

/// Clusters whose references end in one step.
const STEP: u64 = 4096;

/// With tables and a file of at most this size, all of them are checked before anything is changed.
const CHECKED_TABLES: u64 = 16 << 20;
const CHECKED_CLUSTERS: u64 = 1 << 21;

/// What an open image keeps of its journal.
pub(crate) struct Kept {
    /// `None` while a journal is being replayed.
    pub(super) file: Option<JournalFile>,
    pub(super) writer: Arc<JournalWriter>,
}

/// A journal that the image needs and that cannot be used, in an image that is opened for a check.
pub(super) struct Lost {
    why: String,
    /// The journal, if there is one and it is of no use.
    file: Option<JournalFile>,
    /// The journal is sound, and counts again as soon as the image's file is as long as it was.
    is_shortened: bool,
}

impl Lost {
    pub(super) fn report(&self, result: &mut CheckResult) {
        result.corruptions += 1;
        result.messages.insert(0, format!("ERROR {}", self.why));
    }

    /// Refuses a repair that would give up what the user can still have.
    pub(super) fn check_repair(&self) -> Result<()> {
        match self.is_shortened {
            true => Err(Error::new(ErrorKind::Shortened, self.why.clone())),
            false => Ok(()),
        }
    }

    /// Goes on without the journal: the repair of the image alone is complete.
    pub(super) fn give_up(self, result: &mut CheckResult) {
        result.corruptions_fixed += 1;
        result
            .messages
            .insert(0, format!("Repairing: {}", self.why));
        if let Some(file) = self.file {
            file.remove();
        }
    }
}

/// An image whose journal was replayed.
pub(super) struct Recovered {
    pub(super) storage: Arc<dyn Storage>,
    /// A journal that is of use no more, or a place for one.
    pub(super) journal: Option<JournalFile>,
    pub(super) lost: Option<Lost>,
}

impl Qcow2 {
    /// Replays the journal of a process that was killed: into the image's file or, if it is opened read-only, into the
    /// storage that is returned, which keeps the changes in memory.
    ///
    /// # Errors
    /// There is a journal and it cannot be used. For a check the image is opened all the same.
    pub(super) fn recover(
        storage: Arc<dyn Storage>,
        options: &OpenOptions,
        beside: Option<Beside>,
    ) -> Result<Recovered> {
        let recovered = |journal| Recovered {
            storage: storage.clone(),
            journal,
            lost: None,
        };
        let Some(Beside { image, found }) = beside else {
            return Ok(recovered(None));
        };
        let header = read_header(&*storage)?;
        let is_refused = options.writable && !options.for_check;
        let session = match Session::of(&header) {
            // It will be refused for writing.
            Some(_) if is_refused && header.incompatible & feature::CORRUPT != 0 => None,
            // What a host had in memory when it crashed is gone, and with it perhaps what the journal leads to.
            session => session.filter(|session| boot_id().is_none_or(|boot| boot == session.boot)),
        };
        let Some(session) = session else {
            return Ok(recovered(found.unwrap_or_default()));
        };
        let (journal, made) = match found {
            Err(error) => (None, Err(error)),
            Ok(None) => (None, Err(session.lost(image))),
            Ok(Some(journal)) if boot_id().is_none() => {
                let why =
                    "without /proc/sys/kernel/random/boot_id nobody knows whether it still counts";
                let shown = journal.path.display();
                let unknown = Error::unsupported(format!("{shown}: {why}; {GO_ON}"));
                (Some(journal), Err(unknown))
            }
            Ok(Some(journal)) => {
                let made = Self::make_changes(&storage, options, &journal, &session)
                    .and_then(|made| made.ok_or_else(|| session.lost(image)));
                (Some(journal), made)
            }
        };
        match made {
            Ok(storage) => Ok(Recovered {
                storage,
                ..recovered(journal)
            }),
            // After a failed system call the journal may be usable at the next attempt.
            Err(error) if options.for_check && error.kind() != ErrorKind::Io => Ok(Recovered {
                storage: storage.clone(),
                journal: None,
                lost: Some(Lost {
                    why: error.to_string(),
                    file: journal,
                    is_shortened: error.kind() == ErrorKind::Shortened,
                }),
            }),
            Err(error) => Err(error),
        }
    }

    /// `None` if it is not the journal of this session.
    fn make_changes(
        storage: &Arc<dyn Storage>,
        options: &OpenOptions,
        journal: &JournalFile,
        session: &Session,
    ) -> Result<Option<Arc<dyn Storage>>> {
        let cluster_size = read_header(&**storage)?.geometry().cluster_size();
        let Some((left, has_progress)) = read_left(storage, journal, session, cluster_size)? else {
            return Ok(None);
        };
        let Some(file) = journal.storage().filter(|_| !left.is_empty()) else {
            return Ok(Some(storage.clone()));
        };
        let rejected = |error: Error| match error.kind() {
            ErrorKind::Io => error,
            _ => Error::corrupt(format!(
                "{} has what was written since the last flush, and cannot be used ({error}); {GO_ON}",
                journal.path.display()
            )),
        };
        // First in memory, where it changes nothing.
        let scratch: Arc<dyn Storage> = Arc::new(Scratch::new(storage.clone()));
        let writer = |file: Arc<dyn Storage>, image: &Arc<dyn Storage>| {
            let progress = has_progress.then(|| Progress::of(image, cluster_size));
            JournalWriter::new(file, session.number, (progress, left.groups()))
        };
        let in_scratch = writer(Arc::new(Scratch::new(file.clone())), &scratch);
        take_over(scratch.clone(), options, in_scratch, &left).map_err(rejected)?;
        check(&scratch, storage).map_err(rejected)?;
        if !options.writable {
            return Ok(Some(scratch));
        }
        let writer = writer(file.clone(), storage);
        take_over(storage.clone(), options, writer, &left)?;
        Ok(Some(storage.clone()))
    }

    /// Begins a journal, if one is to be kept and the image can have one.
    pub(super) fn keep_journal(
        &self,
        engine: &mut Engine,
        file: Option<JournalFile>,
    ) -> Result<()> {
        let Some(mut file) = file else {
            return Ok(());
        };
        let header = engine.header.clone();
        if header.version < 3 || header.lazy_refcounts() || header.external_data() {
            file.remove();
            return Ok(());
        }
        while !engine.is_clean() {
            self.commit(engine, true)?;
        }
        // Where there is no room for one, tables are written first.
        let Some((header, writer, journal)) = self.begin_journal(&header, &mut file)? else {
            file.remove();
            return Ok(());
        };
        self.update_header(engine, header)?;
        engine.set_journal(Some(journal));
        let file = Some(file);
        let _ = self.kept.set(Kept { file, writer });
        Ok(())
    }

    /// An empty journal, and the header with its session; `None` if there is no room for it.
    fn begin_journal(
        &self,
        header: &Header,
        file: &mut JournalFile,
    ) -> Result<Option<(Header, Arc<JournalWriter>, Journal)>> {
        let progress = Progress::of(&self.storage, self.cluster_size);
        let is_free = progress
            .is_free()
            .map_err(io_failed("cannot read the header"))?;
        if !is_free || !place::leaves_end(&*self.storage, header)? {
            return Ok(None);
        }
        let begun = file.begin(progress).ok();
        let begun = begun
            .and_then(|(session, writer, journal)| Some((session.begin(header)?, writer, journal)));
        if begun.is_none() {
            self.forget_progress();
        }
        Ok(begun)
    }

    /// No session is under way, as the header in the file says: it need not say how far its journal has got.
    pub(super) fn forget_progress(&self) {
        // At worst some bytes stay that nobody reads.
        let _ = Progress::of(&self.storage, self.cluster_size).clear();
    }

    pub(crate) fn has_journal(&self) -> bool {
        self.engine_read().header.autoclear & feature::JOURNAL != 0
    }

    /// See [`crate::Image::journal_file`].
    pub(crate) fn journal_file(&self) -> Option<(&std::path::Path, (u64, u64))> {
        self.kept.get()?.file.as_ref().map(JournalFile::identity)
    }

    /// Writes what the engine recorded to the journal's file; returns whether all of it is there.
    pub(super) fn write_journal(&self) -> bool {
        self.kept.get().is_none_or(|kept| kept.writer.write())
    }

    /// The same. If that is not possible, the journal ends before anything else reaches the image.
    pub(super) fn write_journal_or_end(&self, engine: &mut impl EngineAccess) -> Result<()> {
        if self.write_journal() {
            return Ok(());
        }
        self.end_journal(engine)
    }

    /// Ends the journal: nothing is recorded any more, and the image no longer needs what was.
    pub(super) fn end_journal(&self, engine: &mut impl EngineAccess) -> Result<()> {
        let mut header = engine.with(|engine| engine.header.clone());
        if session::is_in(&header) {
            session::end(&mut header);
            let mut sync = || self.sync_files();
            // The header may go where the image says how far the journal has got.
            sync()?;
            self.write_header(&header, &mut sync)?;
            self.forget_progress();
            sync()?;
        }
        engine.with(|engine| {
            session::end(&mut engine.header);
            engine.set_journal(None);
        });
        Ok(())
    }

    /// See [`crate::Image::secure`].
    pub(crate) fn secure(&self) -> Result<()> {
        self.write_journal();
        match self.is_ahead() {
            true => self.flush(),
            false => Ok(()),
        }
    }

    /// The changes, and then what is owed once they are on the medium.
    fn take_over_left(&self, writer: Arc<JournalWriter>, left: &JournalContents) -> Result<()> {
        self.register_all_metadata()?;
        {
            let mut engine = self.engine_exclusive();
            self.run_locked(&mut engine, |engine| engine.replay(left))?;
            self.commit_all(&mut engine, false)?;
            engine.forget_metadata();
        }
        self.register_all_metadata()?;
        let mut engine = self.engine_exclusive();
        engine.set_journal(Some(Journal::resume(writer.clone(), left)));
        // From here on, this is what a killed process left.
        if !writer.write() {
            return Err(Error::io(
                "cannot write the journal",
                std::io::ErrorKind::StorageFull.into(),
            ));
        }
        // What is settled is noted before it reaches the image, or the next process settles it once more.
        let _ = self.kept.set(Kept { file: None, writer });
        for run in &left.owed {
            self.pay(&mut engine, *run)?;
        }
        while !engine.is_clean() {
            self.commit(&mut engine, true)?;
        }
        self.end_journal(&mut *engine)
    }

    /// Lowers the refcounts of a run that no table uses. A run that cannot be one is skipped: at worst it leaks.
    fn pay(&self, engine: &mut Engine, run: Freed) -> Result<()> {
        let mut rest = run;
        while rest.clusters > 0 {
            let part = Freed {
                clusters: rest.clusters.min(STEP),
                ..rest
            };
            if !self.run_locked(engine, |engine| engine.can_be_owed(&part))? {
                return Ok(());
            }
            self.free(engine, part)?;
            rest.host = HostOffset(
                rest.host
                    .0
                    .saturating_add(part.clusters * self.cluster_size),
            );
            rest.clusters -= part.clusters;
        }
        Ok(())
    }
}

/// What a killed process recorded, and whether the image records how many groups that is; `None` if it is not the
/// journal of this session.
///
/// # Errors
/// The journal is damaged, or it and the image are not what that process left.
fn read_left(
    storage: &Arc<dyn Storage>,
    journal: &JournalFile,
    session: &Session,
    cluster_size: u64,
) -> Result<Option<(JournalContents, bool)>> {
    let failed = |error| Error::io("cannot read the image", error);
    let progress = Progress::of(storage, cluster_size);
    let reached = || progress.read(session.number).map_err(failed);
    let before = reached()?;
    let Some((left, has_progress)) = journal.read(session, cluster_size)? else {
        return Ok(None);
    };
    if has_progress {
        let said = [before, reached()?];
        let len = storage.len().map_err(failed)?;
        progress::check(said, left.groups(), len)
            .map_err(|stale| session.stale(stale, &journal.path))?;
    }
    Ok(Some((left, has_progress)))
}

fn take_over(
    storage: Arc<dyn Storage>,
    options: &OpenOptions,
    writer: JournalWriter,
    left: &JournalContents,
) -> Result<()> {
    let options = OpenOptions {
        writable: true,
        for_check: false,
        snapshot: None,
        ..options.clone()
    };
    let header = read_header(&*storage)?;
    let image = Qcow2::new(storage, header, Vec::new(), &options);
    // All that is to be written was written, whatever the outcome.
    let taken = image.take_over_left(Arc::new(writer), left);
    image
        .closed
        .store(true, std::sync::atomic::Ordering::Release);
    taken
}

/// Refuses a replay that would damage the image, where finding out takes little time.
fn check(changed: &Arc<dyn Storage>, before: &Arc<dyn Storage>) -> Result<()> {
    let header = read_header(&**changed)?;
    let geometry = header.geometry();
    let bytes = u64::from(header.l1_size) * 8;
    let mut l1 = vec![0; bytes.min(crate::formats::qcow2::layout::geometry::MAX_L1_BYTES) as usize];
    let len = l1.len();
    let length = changed
        .read(header.l1_offset, &mut &mut l1[..], 0, len)
        .and_then(|()| changed.len())
        .map_err(|error| Error::io("cannot read the L1 table", error))?;
    let is_used = |word: &&[u8]| {
        word.first_chunk()
            .is_some_and(|word| u64::from_be_bytes(*word) & OFFSET_MASK != 0)
    };
    let tables = l1.chunks_exact(8).filter(is_used).count() as u64;
    let clusters = geometry.clusters_for(length);
    if tables.saturating_mul(geometry.cluster_size()) > CHECKED_TABLES
        || clusters > CHECKED_CLUSTERS
    {
        return Ok(());
    }
    let found = |storage: &Arc<dyn Storage>| -> Result<_> {
        let header = read_header(&**storage)?;
        Ok(Check::new(&**storage, &header, Repair::None)?.run().result)
    };
    let damage = found(changed)?;
    if damage.corruptions + damage.check_errors > 0 && found(before)?.is_sound() {
        return Err(Error::corrupt("it would damage the image"));
    }
    Ok(())
}
