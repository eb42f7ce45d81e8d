//! The synchronous driver of the engine: reads what it needs, and switches between tables.

use crate::error::{Error, ErrorKind, Result};
use crate::formats::qcow2::Qcow2;
use crate::formats::qcow2::commit::io_failed;
use crate::formats::qcow2::engine::{Engine, Stop, Switch};
use crate::formats::qcow2::journal::session;
use crate::formats::qcow2::layout::feature;
use crate::formats::qcow2::layout::header::{Header, place};

impl Qcow2 {
    /// See [`crate::Image::is_ahead`].
    pub(crate) fn is_ahead(&self) -> bool {
        self.engine_read().is_ahead()
    }

    /// Runs an operation of the engine. While it waits for a table to be read, other requests go on.
    pub(crate) fn run<T>(
        &self,
        mut operation: impl FnMut(&mut Engine) -> Result<T, Stop>,
    ) -> Result<T> {
        loop {
            let mut engine = self.engine_write();
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
                Err(Stop::Reserve { offset, len }) => {
                    drop(engine);
                    // Where that means to write zeroes, it must not come after the table of somebody who was asked the same.
                    let reserving = self.reserving.lock();
                    let _one = reserving.unwrap_or_else(std::sync::PoisonError::into_inner);
                    if !self.engine_read().is_reserved(offset) {
                        self.reserve_table(offset, len)?;
                        self.engine_write().reserved(offset);
                    }
                }
                Err(Stop::RefcountTableFull) => {
                    let end = engine.refcount_table_end();
                    drop(engine);
                    let mut engine = self.engine_exclusive();
                    // Unless somebody else has done it meanwhile.
                    if engine.refcount_table_end() == end {
                        self.grow_refcount_table(&mut engine)?;
                    }
                }
                Err(Stop::Fail(error)) => {
                    drop(engine);
                    if error.kind() == ErrorKind::Corrupt {
                        self.signal_corruption(&mut self.engine_exclusive(), &error);
                    }
                    return Err(error);
                }
            }
        }
    }

    /// Runs an operation of the engine that changes nothing: several of them run at once.
    pub(crate) fn find<T>(&self, operation: impl Fn(&Engine) -> Result<T, Stop>) -> Result<T> {
        let mut has_read = false;
        loop {
            let found = operation(&self.engine_read());
            match found {
                Ok(value) => {
                    if has_read {
                        self.engine_write().trim();
                    }
                    return Ok(value);
                }
                Err(Stop::Need { offset, len }) => {
                    self.load(&mut &*self, offset, len)?;
                    has_read = true;
                }
                // Met once more, where damage is marked.
                Err(_) => return self.run(|engine| operation(engine)),
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
                Err(Stop::Reserve { offset, len }) => {
                    self.reserve_table(offset, len)?;
                    engine.reserved(offset);
                }
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

    /// Has the host keep space for a table that is about to be made.
    pub(super) fn reserve_table(&self, offset: u64, len: u64) -> Result<()> {
        match self.storage.allocate(offset, len) {
            // Whoever cannot say so beforehand says so when it is written.
            Err(error) if error.kind() == std::io::ErrorKind::Unsupported => Ok(()),
            done => done.map_err(io_failed("cannot write metadata")),
        }
    }

    /// Makes the image's file shorter or longer.
    pub(super) fn set_len(&self, len: u64) -> std::io::Result<()> {
        let set_len = || self.storage.set_len(len);
        match self.kept.get() {
            Some(kept) => kept.notes.set_len(len, set_len),
            None => set_len(),
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
        if session::is_in(&engine.header) && !session::is_in(&header) {
            self.forget_progress();
        }
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
                Err(Stop::Reserve { offset, .. }) => engine.reserved(offset),
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

#[cfg(test)]
mod tests {
    use crate::image::Image;
    use crate::{CreateOptions, Format, OpenOptions};

    /// An image with many L2 tables, of 64 entries each.
    fn image(folder: &std::path::Path, cache_bytes: usize) -> Image {
        let path = folder.join("disk");
        let mut options = CreateOptions::new(Format::Qcow2, 4 << 20);
        options.cluster_size = 512;
        crate::create(&path, &options).unwrap();
        let mut options = OpenOptions::new(Format::Qcow2).writable(true);
        options.cache_bytes = cache_bytes;
        let image = Image::open(&path, &options).unwrap();
        for at in (0..4 << 20).step_by(32 << 10) {
            image.write_at(at, b"data").unwrap();
        }
        image.flush().unwrap();
        image
    }

    #[test]
    fn one_who_looks_keeps_no_other_from_it() {
        let folder = tempfile::tempdir().unwrap();
        let image = image(folder.path(), 1 << 20);
        let qcow2 = image.driver.as_qcow2().unwrap();

        let looking = qcow2.engine_read();

        let mut seen = [0; 4];
        image.read_at(32 << 10, &mut seen).unwrap();
        assert_eq!(&seen, b"data");
        assert!(image.plan_read(0, 512).unwrap().is_some());
        assert!(image.plan_write(0, 4).unwrap().is_some());
        drop(looking);
    }

    #[test]
    fn reading_keeps_no_more_tables_than_there_is_room_for() {
        let folder = tempfile::tempdir().unwrap();
        let image = image(folder.path(), 0);
        let qcow2 = image.driver.as_qcow2().unwrap();
        let least = 64;
        for at in (0..4 << 20).step_by(32 << 10) {
            image.read_at(at, &mut [0; 4]).unwrap();
            assert!(qcow2.engine_read().cached_pages() <= least, "at {at}");
        }
    }
}
