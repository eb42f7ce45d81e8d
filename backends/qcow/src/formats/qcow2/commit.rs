//! Putting changed tables on the medium, in their order, while other requests go on.

use std::ops::{Deref, DerefMut};
use std::sync::{PoisonError, RwLockReadGuard, RwLockWriteGuard};

use crate::error::{Error, Result};
use crate::formats::qcow2::Qcow2;
use crate::formats::qcow2::engine::{DirtyPages, Engine, MetadataBatch, Stop};
use crate::formats::qcow2::journal::Freed;
use crate::formats::qcow2::layout::geometry::HOST_LIMIT;
use crate::formats::qcow2::layout::table::Table;
use crate::formats::qcow2::run::During;
use crate::options::Discard;
use crate::storage::group_commit::Commit;

/// Tables are read in pieces of this size, aligned, if clusters are larger.
const READ_AHEAD: u64 = 16 << 10;

pub(super) fn io_failed(what: &'static str) -> impl Fn(std::io::Error) -> Error {
    move |error| Error::io(what, error)
}

/// The engine, for code that runs either with the engine locked throughout (`Engine`) or locks it for each step
/// (`&Qcow2`).
pub(super) trait EngineAccess {
    /// Runs `operation` with the engine locked. It does no I/O.
    fn with<T>(&mut self, operation: impl FnOnce(&mut Engine) -> T) -> T;

    /// The engine, if it is locked throughout.
    fn exclusive(&mut self) -> Option<&mut Engine>;
}

impl EngineAccess for Engine {
    fn with<T>(&mut self, operation: impl FnOnce(&mut Engine) -> T) -> T {
        operation(self)
    }

    fn exclusive(&mut self) -> Option<&mut Engine> {
        Some(self)
    }
}

impl EngineAccess for &Qcow2 {
    fn with<T>(&mut self, operation: impl FnOnce(&mut Engine) -> T) -> T {
        operation(&mut self.engine_write())
    }

    fn exclusive(&mut self) -> Option<&mut Engine> {
        None
    }
}

/// The engine, locked for writing, while no commit of other threads is under way.
#[derive(Debug)]
pub(crate) struct ExclusiveEngine<'a> {
    // Dropped in this order: the commit must not end while the engine is locked.
    engine: RwLockWriteGuard<'a, Engine>,
    _commit: Commit<'a>,
}

impl Deref for ExclusiveEngine<'_> {
    type Target = Engine;

    fn deref(&self) -> &Engine {
        &self.engine
    }
}

impl DerefMut for ExclusiveEngine<'_> {
    fn deref_mut(&mut self) -> &mut Engine {
        &mut self.engine
    }
}

/// The outcome of writing a batch.
struct Written {
    /// The dirty bit is on the medium.
    marked: bool,
    /// A sync failed: nobody knows what is on the medium.
    lost: bool,
    result: Result<()>,
}

impl Qcow2 {
    /// Exclusive access: waits for the commit that is under way, and keeps others from beginning one.
    pub(super) fn engine_exclusive(&self) -> ExclusiveEngine<'_> {
        let commit = self.commits.begin();
        ExclusiveEngine {
            engine: self.engine_write(),
            _commit: commit,
        }
    }

    /// Access for writing. No I/O while this is held.
    pub(super) fn engine_write(&self) -> RwLockWriteGuard<'_, Engine> {
        self.engine.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Access for reading, for several threads at once. No I/O while this is held.
    pub(super) fn engine_read(&self) -> RwLockReadGuard<'_, Engine> {
        self.engine.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads what an operation needs.
    pub(super) fn load(&self, engine: &mut impl EngineAccess, offset: u64, len: u64) -> Result<()> {
        let (mark, ahead) = engine.with(|engine| {
            let ahead = READ_AHEAD.min(engine.geometry().cluster_size());
            (engine.before_read(), ahead)
        });
        let (start, window) = if len < ahead {
            (offset & !(ahead - 1), ahead)
        } else {
            (offset, len)
        };
        if start >= HOST_LIMIT {
            return Err(Error::corrupt(format!(
                "a table lies at an impossible offset {offset:#x}"
            )));
        }
        let mut bytes = vec![0u8; window as usize];
        self.storage
            .read(start, &mut &mut bytes[..], 0, window as usize)
            .map_err(io_failed("cannot read metadata"))?;
        engine.with(|engine| engine.fill(mark, start, &bytes));
        Ok(())
    }

    /// Writes all that is unwritten, in order, and syncs. With `finish`, refcounts too, in any case.
    pub(super) fn commit(&self, engine: &mut Engine, finish: bool) -> Result<()> {
        self.commit_by_steps(engine, finish)
    }

    /// Commits what there is, and then the refcounts that the first time lowered. Does nothing where there is nothing
    /// to write.
    pub(super) fn commit_all(&self, engine: &mut Engine, finish: bool) -> Result<()> {
        for _ in 0..2 {
            if !engine.is_clean() {
                self.commit(engine, finish)?;
            }
        }
        Ok(())
    }

    /// As [`Qcow2::commit`], for callers that have not locked the engine: other requests go on meanwhile, and a commit
    /// of another thread that begins after this call serves this caller, too.
    pub(super) fn commit_meanwhile(&self) -> Result<()> {
        let Some(commit) = self.commits.begin_unless_covered() else {
            return Ok(());
        };
        self.commit_by_steps(&mut &*self, false)?;
        commit.succeeded();
        Ok(())
    }

    fn commit_by_steps(&self, engine: &mut impl EngineAccess, finish: bool) -> Result<()> {
        let batch = engine.with(|engine| engine.take_batch(finish))?;
        // The journal has what reaches the image before the image does.
        let noted = self.write_journal_or_end(engine);
        let written = match noted {
            Ok(()) => self.write_batch(&batch),
            Err(error) => Written {
                marked: false,
                lost: true,
                result: Err(error),
            },
        };
        let freed = engine.with(|engine| {
            if written.marked {
                engine.header.incompatible |= crate::formats::qcow2::layout::feature::DIRTY;
            }
            if written.lost
                && let Err(error) = &written.result
            {
                engine.stop(error.to_string());
            }
            engine.end_batch(batch, written.result.is_ok())
        });
        written.result?;
        self.write_journal();
        freed
            .into_iter()
            .try_for_each(|freed| self.free(engine, freed))
    }

    fn write_batch(&self, batch: &MetadataBatch) -> Written {
        let (mut marked, mut lost) = (false, false);
        let mut sync = || self.sync_files().inspect_err(|_| lost = true);
        let mut write = || {
            // Whether everything the next stage refers to is on the medium; first of all the data that copy-on-write
            // wrote.
            let mut synced = false;
            if let Some(header) = &batch.header {
                sync()?;
                self.write_header(header, &mut sync)?;
                marked = true;
                sync()?;
                synced = true;
            }
            for (stage, table) in batch.stages.iter().zip(Table::ALL) {
                if stage.is_empty() {
                    continue;
                }
                let stands_on_data = matches!(table, Table::L2 | Table::L1);
                if stands_on_data && !synced {
                    sync()?;
                }
                self.write_pages(stage)?;
                synced = false;
                // Entries that use what is counted come after the counts.
                if !stands_on_data {
                    sync()?;
                    synced = true;
                }
            }
            if synced { Ok(()) } else { sync() }
        };
        let result = write();
        Written {
            marked,
            lost,
            result,
        }
    }

    /// Writes pages, those that follow each other at once.
    fn write_pages(&self, pages: &DirtyPages) -> Result<()> {
        let (mut offset, mut bytes) = (0, Vec::new());
        for (start, words) in pages {
            if !bytes.is_empty() && offset + bytes.len() as u64 != *start {
                self.write_file(offset, &bytes)?;
                bytes.clear();
            }
            if bytes.is_empty() {
                offset = *start;
            }
            bytes.extend(words.iter().flat_map(|word| word.to_be_bytes()));
        }
        self.write_file(offset, &bytes)
    }

    /// Lowers the refcounts of what no table on the medium uses any more.
    pub(super) fn free(&self, engine: &mut impl EngineAccess, mut freed: Freed) -> Result<()> {
        while freed.clusters > 0 {
            let ending = self.attempt(engine, |engine| engine.about_to_be_free(freed))?;
            if !ending.is_empty() {
                self.forget_decompressed();
            }
            if self.discard == Discard::Unmap {
                for run in &ending {
                    // The space is free in the image whether the host takes it back or not.
                    let _ = self
                        .storage
                        .discard(run.host.0, run.clusters * self.cluster_size);
                }
            }
            // From now on somebody else may use them.
            let done = self.attempt(engine, |engine| {
                let (done, free) = engine.apply_freed(freed)?;
                free.into_iter().for_each(|free| engine.forget(free));
                Ok(done)
            })?;
            freed.host.0 += done * self.cluster_size;
            freed.clusters -= done;
        }
        Ok(())
    }

    /// Runs an operation that allocates nothing, during a commit.
    fn attempt<T>(
        &self,
        engine: &mut impl EngineAccess,
        mut operation: impl FnMut(&mut Engine) -> Result<T, Stop>,
    ) -> Result<T> {
        self.retry(engine, During::Commit, |engine| {
            engine.with(|engine| engine.attempt(&mut operation))
        })
    }

    pub(super) fn sync_files(&self) -> Result<()> {
        self.sync_data()?;
        self.storage.sync().map_err(io_failed("flush error"))
    }

    /// After a failed sync nobody knows what is on the medium: nothing may be built upon it.
    pub(super) fn sync(&self, engine: &mut Engine) -> Result<()> {
        self.sync_files().inspect_err(|error| {
            engine.stop(error.to_string());
        })
    }

    /// Puts everything on the medium.
    pub(crate) fn flush(&self) -> Result<()> {
        self.engine_read().check_usable()?;
        if !self.commits.is_idle_and(|| self.engine_read().is_clean()) {
            return self.commit_meanwhile();
        }
        // Nothing to order.
        self.sync_files().inspect_err(|error| {
            self.engine_write().stop(error.to_string());
        })
    }
}
