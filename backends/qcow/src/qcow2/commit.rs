//! Putting changed tables on the medium, in their order, while other requests go on.

use std::ops::{Deref, DerefMut};
use std::sync::{PoisonError, RwLockReadGuard, RwLockWriteGuard};

use crate::engine::{Cut, Engine, Freed, Snapshot, Stop, Table};
use crate::error::{Error, Result};
use crate::geometry::HOST_LIMIT;
use crate::options::Discard;
use crate::qcow2::Qcow2;
use crate::turn::Turn;

/// Tables are read in pieces of this size, aligned, if clusters are larger.
const READ_AHEAD: u64 = 16 << 10;

pub(super) fn io_failed(what: &'static str) -> impl Fn(std::io::Error) -> Error {
    move |error| Error::io(what, error)
}

/// The engine: locked for as long as somebody has it, or for each step by itself.
pub(super) trait Steps {
    /// One step, with the engine locked; none of them does I/O.
    fn step<T>(&mut self, step: impl FnOnce(&mut Engine) -> T) -> T;
}

impl Steps for Engine {
    fn step<T>(&mut self, step: impl FnOnce(&mut Engine) -> T) -> T {
        step(self)
    }
}

impl Steps for &Qcow2 {
    fn step<T>(&mut self, step: impl FnOnce(&mut Engine) -> T) -> T {
        step(&mut self.glance())
    }
}

/// The engine, locked, while nobody writes its tables but the one who has this.
#[derive(Debug)]
pub(crate) struct Alone<'a> {
    // In this order: the turn must not be over while the engine is locked.
    engine: RwLockWriteGuard<'a, Engine>,
    _turn: Turn<'a>,
}

impl Deref for Alone<'_> {
    type Target = Engine;

    fn deref(&self) -> &Engine {
        &self.engine
    }
}

impl DerefMut for Alone<'_> {
    fn deref_mut(&mut self) -> &mut Engine {
        &mut self.engine
    }
}

/// What became of the stages of a cut.
struct Written {
    /// The dirty bit is on the medium.
    marked: bool,
    /// A sync failed: nobody knows what is on the medium.
    lost: bool,
    result: Result<()>,
}

impl Qcow2 {
    /// The engine, with nobody writing its tables: waits for who does.
    pub(super) fn engine(&self) -> Alone<'_> {
        let turn = self.turns.take();
        Alone {
            engine: self.glance(),
            _turn: turn,
        }
    }

    /// The engine for a moment: no I/O while this is held.
    pub(super) fn glance(&self) -> RwLockWriteGuard<'_, Engine> {
        self.engine.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The engine for a moment, to look at, as several may at once: no I/O while this is held.
    pub(super) fn look(&self) -> RwLockReadGuard<'_, Engine> {
        self.engine.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads what an operation needs.
    pub(super) fn load(&self, engine: &mut impl Steps, offset: u64, len: u64) -> Result<()> {
        let (mark, ahead) = engine.step(|engine| {
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
        engine.step(|engine| engine.fill(mark, start, &bytes));
        Ok(())
    }

    /// Writes all that is unwritten, in order, and syncs. With `finish`, refcounts too, in any case.
    pub(super) fn commit(&self, engine: &mut Engine, finish: bool) -> Result<()> {
        self.commit_by_steps(engine, finish)
    }

    /// Commits what there is, and then the refcounts that the first time lowered. Does nothing where there is nothing to write.
    pub(super) fn commit_all(&self, engine: &mut Engine, finish: bool) -> Result<()> {
        for _ in 0..2 {
            if !engine.is_clean() {
                self.commit(engine, finish)?;
            }
        }
        Ok(())
    }

    /// The same as [`Qcow2::commit`] for one who has no turn, nor the engine locked: others go on with it, and if somebody else commits anyway, that serves.
    pub(super) fn commit_meanwhile(&self) -> Result<()> {
        let Some(turn) = self.turns.take_unless_written() else {
            return Ok(());
        };
        self.commit_by_steps(&mut &*self, false)?;
        turn.all_written();
        Ok(())
    }

    fn commit_by_steps(&self, engine: &mut impl Steps, finish: bool) -> Result<()> {
        let cut = engine.step(|engine| engine.cut(finish))?;
        // What reaches the image is noted before.
        let noted = self.keep_notes(engine);
        let written = match noted {
            Ok(()) => self.write_cut(&cut),
            Err(error) => Written {
                marked: false,
                lost: true,
                result: Err(error),
            },
        };
        let freed = engine.step(|engine| {
            if written.marked {
                engine.header.incompatible |= crate::feature::DIRTY;
            }
            if written.lost
                && let Err(error) = &written.result
            {
                engine.stop(error.to_string());
            }
            engine.settle(cut, written.result.is_ok())
        });
        written.result?;
        self.write_notes();
        freed
            .into_iter()
            .try_for_each(|freed| self.free(engine, freed))
    }

    fn write_cut(&self, cut: &Cut) -> Written {
        let (mut marked, mut lost) = (false, false);
        let mut sync = || self.sync_files().inspect_err(|_| lost = true);
        let mut write = || {
            // Whether all that the cut stands on is on the medium: what copy-on-write wrote, first of all.
            let mut synced = false;
            if let Some(header) = &cut.header {
                sync()?;
                self.write_header(header, &mut sync)?;
                marked = true;
                sync()?;
                synced = true;
            }
            for (stage, table) in cut.stages.iter().zip(Table::ALL) {
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
    fn write_pages(&self, pages: &Snapshot) -> Result<()> {
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
    pub(super) fn free(&self, engine: &mut impl Steps, mut freed: Freed) -> Result<()> {
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

    /// Runs an operation that allocates nothing, in a turn.
    fn attempt<T>(
        &self,
        engine: &mut impl Steps,
        mut operation: impl FnMut(&mut Engine) -> Result<T, Stop>,
    ) -> Result<T> {
        loop {
            match engine.step(|engine| engine.attempt(&mut operation)) {
                Ok(done) => return Ok(done),
                Err(Stop::Need { offset, len }) => self.load(engine, offset, len)?,
                Err(Stop::Reserve { offset, len }) => {
                    self.reserve_table(offset, len)?;
                    engine.step(|engine| engine.reserved(offset));
                }
                Err(Stop::RefcountTableFull) => {
                    return Err(Error::corrupt("the refcount table is too small"));
                }
                Err(Stop::Fail(error)) => {
                    engine.step(|engine| self.signal_corruption(engine, &error));
                    return Err(error);
                }
            }
        }
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
        self.look().check_usable()?;
        if !self.turns.is_idle_and(|| self.look().is_clean()) {
            return self.commit_meanwhile();
        }
        // Nothing to order.
        self.sync_files().inspect_err(|error| {
            self.glance().stop(error.to_string());
        })
    }
}
