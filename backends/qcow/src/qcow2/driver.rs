//! The synchronous driver of the engine: reads what it needs, and switches between tables.

use crate::engine::{Engine, Stop, Switch};
use crate::error::{Error, ErrorKind, Result};
use crate::feature;
use crate::header::{Header, place};
use crate::qcow2::Qcow2;
use crate::qcow2::commit::io_failed;

impl Qcow2 {
    /// See [`crate::Image::is_ahead`].
    pub(crate) fn is_ahead(&self) -> bool {
        self.glance().is_ahead()
    }

    /// Runs an operation of the engine. While it waits for a table to be read, other requests go on.
    pub(crate) fn run<T>(
        &self,
        mut operation: impl FnMut(&mut Engine) -> Result<T, Stop>,
    ) -> Result<T> {
        loop {
            let mut engine = self.glance();
            match engine.attempt(&mut operation) {
                Ok(value) => {
                    let commit = engine.wants_commit();
                    drop(engine);
                    if commit {
                        self.commit_meanwhile()?;
                    }
                    return Ok(value);
                }
                Err(Stop::Need { offset, len }) => {
                    drop(engine);
                    self.load(&mut &*self, offset, len)?;
                }
                Err(Stop::RefcountTableFull) => {
                    let end = engine.refcount_table_end();
                    drop(engine);
                    let mut engine = self.engine();
                    // Unless somebody else has done it meanwhile.
                    if engine.refcount_table_end() == end {
                        self.grow_refcount_table(&mut engine)?;
                    }
                }
                Err(Stop::Fail(error)) => {
                    drop(engine);
                    if error.kind() == ErrorKind::Corrupt {
                        self.signal_corruption(&mut self.engine(), &error);
                    }
                    return Err(error);
                }
            }
        }
    }

    /// Runs an operation of the engine, which the caller has to itself.
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

    pub(super) fn write_file(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.storage
            .write(offset, &bytes, 0, bytes.len())
            .map_err(io_failed("cannot write metadata"))
    }

    pub(super) fn sync_data(&self) -> Result<()> {
        match &self.data {
            Some((data, _)) => data.sync().map_err(io_failed("flush error")),
            None => Ok(()),
        }
    }

    /// Writes and syncs the header and takes it over.
    pub(super) fn update_header(&self, engine: &mut Engine, header: Header) -> Result<()> {
        self.sync(engine)?;
        self.write_header(&header, &mut || self.sync(engine))?;
        self.sync(engine)?;
        engine.header = header;
        Ok(())
    }

    /// Writes the header with its extensions and the name of the backing file.
    pub(super) fn write_header(
        &self,
        header: &Header,
        sync: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        place::write(&*self.storage, header, sync)
    }

    /// Switches to another table.
    pub(super) fn switch(&self, engine: &mut Engine, switch: Switch) -> Result<()> {
        for (offset, bytes) in &switch.writes {
            self.write_file(*offset, bytes)?;
        }
        self.sync(engine)?;
        self.write_header(&switch.header, &mut || self.sync(engine))?;
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
                Err(Stop::Fail(error)) => {
                    if error.kind() == ErrorKind::Corrupt {
                        self.signal_corruption(engine, &error);
                    }
                    return Err(error);
                }
            }
        };
        self.switch(engine, switch)
    }

    /// Metadata is damaged: say so in the image, and write nothing else into it.
    pub(super) fn signal_corruption(&self, engine: &mut Engine, error: &Error) {
        if engine.check_usable().is_err() || !engine.stop(error.to_string()) || self.for_check {
            return;
        }
        if engine.header.version >= 3 {
            engine.header.incompatible |= feature::CORRUPT;
            let header = engine.header.clone();
            // The first error is the one to report.
            let mut sync = || self.storage.sync().map_err(io_failed("flush error"));
            let _ = self.write_header(&header, &mut sync).and_then(|()| sync());
        }
    }
}
