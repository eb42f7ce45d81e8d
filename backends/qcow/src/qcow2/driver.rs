//! The synchronous driver of the engine: reads what it needs, writes what it changed, in its order.

use std::sync::{MutexGuard, PoisonError};

use crate::engine::{Engine, Stop, Switch, Table};
use crate::error::{Error, ErrorKind, Result};
use crate::feature;
use crate::geometry::HOST_LIMIT;
use crate::header::{Header, SECTOR};
use crate::options::Discard;
use crate::qcow2::Qcow2;

/// Tables are read in pieces of this size, aligned, if clusters are larger.
const READ_AHEAD: u64 = 16 << 10;

fn io_failed(what: &'static str) -> impl Fn(std::io::Error) -> Error {
    move |error| Error::io(what, error)
}

impl Qcow2 {
    pub(super) fn engine(&self) -> MutexGuard<'_, Engine> {
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// See [`crate::Image::is_ahead`].
    pub(crate) fn is_ahead(&self) -> bool {
        self.engine().is_ahead()
    }

    /// Runs an operation of the engine.
    pub(crate) fn run<T>(
        &self,
        operation: impl FnMut(&mut Engine) -> Result<T, Stop>,
    ) -> Result<T> {
        let mut engine = self.engine();
        self.run_locked(&mut engine, operation)
    }

    /// Runs an operation of the engine, which is locked already.
    pub(crate) fn run_locked<T>(
        &self,
        engine: &mut Engine,
        mut operation: impl FnMut(&mut Engine) -> Result<T, Stop>,
    ) -> Result<T> {
        loop {
            match engine.attempt(&mut operation) {
                Ok(value) => {
                    if engine.wants_commit() {
                        self.commit(engine, false)?;
                    }
                    return Ok(value);
                }
                Err(Stop::Need { offset, len }) => self.load(engine, offset, len)?,
                Err(Stop::RefcountTableFull) => self.grow_refcount_table(engine)?,
                Err(Stop::Fail(error)) => {
                    if error.kind() == ErrorKind::Corrupt {
                        self.signal_corruption(engine, &error);
                    }
                    return Err(error);
                }
            }
        }
    }

    fn load(&self, engine: &mut Engine, offset: u64, len: u64) -> Result<()> {
        let ahead = READ_AHEAD.min(engine.geometry().cluster_size());
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
        engine.fill(start, &bytes);
        Ok(())
    }

    pub(super) fn write_file(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.storage
            .write(offset, &bytes, 0, bytes.len())
            .map_err(io_failed("cannot write metadata"))
    }

    /// After a failed sync nobody knows what is on the medium: nothing may be built upon it.
    pub(super) fn sync(&self, engine: &mut Engine) -> Result<()> {
        let synced = self
            .sync_data()
            .and_then(|()| self.storage.sync().map_err(io_failed("flush error")));
        if let Err(error) = &synced {
            engine.stop(error.to_string());
        }
        synced
    }

    pub(super) fn sync_data(&self) -> Result<()> {
        match &self.data {
            Some((data, _)) => data.sync().map_err(io_failed("flush error")),
            None => Ok(()),
        }
    }

    /// Writes all that is unwritten, in order, and syncs. With `finish`, refcounts too, in any case.
    pub(super) fn commit(&self, engine: &mut Engine, finish: bool) -> Result<()> {
        engine.check_usable()?;
        if !finish && engine.refcounts_may_wait() {
            if engine.needs_dirty_bit() {
                let mut header = engine.header.clone();
                header.incompatible |= feature::DIRTY;
                self.update_header(engine, header)?;
            }
        } else {
            for table in [Table::Refcounts, Table::Blocks] {
                if self.write_batch(engine, table)? {
                    self.sync(engine)?;
                }
            }
        }
        // What copy-on-write wrote must be on the medium before the entries that lead to it. A sync for refcounts did that.
        self.synced_write(engine, Table::L2, finish)?;
        self.synced_write(engine, Table::L1, finish)?;
        self.sync(engine)?;
        self.apply_freed(engine)
    }

    fn synced_write(&self, engine: &mut Engine, table: Table, _finish: bool) -> Result<()> {
        if let Some(batch) = engine.batch(table) {
            self.sync(engine)?;
            for (offset, bytes) in &batch.writes {
                self.write_file(*offset, bytes)?;
            }
            engine.batch_written(&batch);
        }
        Ok(())
    }

    fn write_batch(&self, engine: &mut Engine, table: Table) -> Result<bool> {
        let Some(batch) = engine.batch(table) else {
            return Ok(false);
        };
        for (offset, bytes) in &batch.writes {
            self.write_file(*offset, bytes)?;
        }
        engine.batch_written(&batch);
        Ok(true)
    }

    /// Lowers the refcounts of what no table on the medium uses any more.
    fn apply_freed(&self, engine: &mut Engine) -> Result<()> {
        for mut freed in engine.take_freed() {
            while freed.clusters > 0 {
                let (done, free) = loop {
                    match engine.attempt(|engine| engine.apply_freed(freed)) {
                        Ok(done) => break done,
                        Err(Stop::Need { offset, len }) => self.load(engine, offset, len)?,
                        Err(Stop::RefcountTableFull) => {
                            return Err(Error::corrupt("the refcount table is too small"));
                        }
                        Err(Stop::Fail(error)) => {
                            self.signal_corruption(engine, &error);
                            return Err(error);
                        }
                    }
                };
                for free in free {
                    engine.forget(free);
                    self.forget_decompressed();
                    if self.discard == Discard::Unmap {
                        let len = free.clusters << engine.geometry().cluster_bits;
                        // The space is free in the image whether the host takes it back or not.
                        let _ = self.storage.discard(free.host.0, len);
                    }
                }
                freed.host.0 += done << engine.geometry().cluster_bits;
                freed.clusters -= done;
            }
        }
        Ok(())
    }

    /// Writes and syncs the header and takes it over.
    pub(super) fn update_header(&self, engine: &mut Engine, header: Header) -> Result<()> {
        self.sync(engine)?;
        self.write_header(&header)?;
        self.sync(engine)?;
        engine.header = header;
        Ok(())
    }

    /// Writes the header with its extensions.
    pub(super) fn write_header(&self, header: &Header) -> Result<()> {
        let room = if header.backing.is_some() {
            header.backing_offset
        } else {
            1 << header.cluster_bits
        };
        let mut bytes = header.encode_within(room as usize);
        if bytes.len() as u64 > room {
            return Err(Error::invalid(
                "the header extensions do not fit into the first cluster",
            ));
        }
        // A whole sector if possible: that much reaches the medium completely or not at all.
        let padded = (room as usize).min(SECTOR).max(bytes.len());
        bytes.resize(padded, 0);
        self.write_file(0, &bytes)
    }

    /// Switches to another table.
    pub(super) fn switch(&self, engine: &mut Engine, switch: Switch) -> Result<()> {
        for (offset, bytes) in &switch.writes {
            self.write_file(*offset, bytes)?;
        }
        self.sync(engine)?;
        self.write_header(&switch.header)?;
        self.sync(engine)?;
        engine.switched(switch);
        Ok(())
    }

    fn grow_refcount_table(&self, engine: &mut Engine) -> Result<()> {
        self.commit(engine, true)?;
        let switch = loop {
            match engine.attempt(Engine::grow_refcount_table) {
                Ok(switch) => break switch,
                Err(Stop::Need { offset, len }) => self.load(engine, offset, len)?,
                Err(Stop::RefcountTableFull) => {
                    return Err(Error::corrupt("the refcount table is too small"));
                }
                Err(Stop::Fail(error)) => return Err(error),
            }
        };
        self.switch(engine, switch)
    }

    /// Metadata is damaged: say so in the image, and write nothing else into it.
    fn signal_corruption(&self, engine: &mut Engine, error: &Error) {
        if engine.check_usable().is_err() || !engine.stop(error.to_string()) || self.for_check {
            return;
        }
        if engine.header.version >= 3 {
            engine.header.incompatible |= feature::CORRUPT;
            let header = engine.header.clone();
            // The first error is the one to report.
            let _ = self
                .write_header(&header)
                .and_then(|()| self.storage.sync().map_err(io_failed("flush error")));
        }
    }
}
