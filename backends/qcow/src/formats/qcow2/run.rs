//! Runs the engine's operations with plain system calls: reads and reserves what they need, and switches between
//! tables.

use crate::error::{Error, ErrorKind, Result};
use crate::formats::qcow2::Qcow2;
use crate::formats::qcow2::commit::{EngineAccess, io_failed};
use crate::formats::qcow2::engine::{Engine, Stop, Switch};
use crate::formats::qcow2::journal::session;
use crate::formats::qcow2::layout::feature;
use crate::formats::qcow2::layout::header::{Header, place};

/// On whose behalf an operation of the engine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum During {
    /// A request: it may wait for a commit, and grow the refcount table.
    Request,
    /// A commit: it is the one that others wait for, and allocates nothing.
    Commit,
}

impl Qcow2 {
    /// See [`crate::Image::is_ahead`].
    pub(crate) fn is_ahead(&self) -> bool {
        self.engine_read().is_ahead()
    }

    /// Runs an operation of the engine. While a table is read for it, other requests go on.
    pub(crate) fn run<T>(
        &self,
        mut operation: impl FnMut(&mut Engine) -> Result<T, Stop>,
    ) -> Result<T> {
        let (value, commit) = self.retry(&mut &*self, During::Request, |image| {
            let mut engine = image.engine_write();
            let value = engine.attempt(&mut operation)?;
            Ok((value, engine.wants_commit()))
        })?;
        if commit {
            self.commit_meanwhile()?;
        }
        Ok(value)
    }

    /// Runs an operation of the engine that changes nothing: several of them run at once.
    pub(crate) fn find<T>(&self, operation: impl Fn(&Engine) -> Result<T, Stop>) -> Result<T> {
        let mut attempts = 0;
        let found = self.retry(&mut &*self, During::Request, |image| {
            attempts += 1;
            operation(&image.engine_read())
        })?;
        // More than one attempt: tables were read for it.
        if attempts > 1 {
            self.engine_write().trim();
        }
        Ok(found)
    }

    /// Runs an operation of the engine, to which the caller has exclusive access.
    pub(crate) fn run_locked<T>(
        &self,
        engine: &mut Engine,
        mut operation: impl FnMut(&mut Engine) -> Result<T, Stop>,
    ) -> Result<T> {
        let value = self.retry(engine, During::Request, |engine| {
            engine.attempt(&mut operation)
        })?;
        if engine.wants_commit() {
            self.commit(engine, false)?;
        }
        Ok(value)
    }

    /// Attempts an operation of the engine until it has all it needs.
    pub(super) fn retry<A: EngineAccess, T>(
        &self,
        access: &mut A,
        during: During,
        mut attempt: impl FnMut(&mut A) -> Result<T, Stop>,
    ) -> Result<T> {
        loop {
            match attempt(access) {
                Ok(value) => return Ok(value),
                Err(Stop::Need { offset, len }) => self.load(access, offset, len)?,
                Err(Stop::Reserve { offset, len }) => {
                    self.reserve_for(access, during, (offset, len))?;
                }
                Err(Stop::RefcountTableFull { end }) => self.make_room(access, during, end)?,
                Err(Stop::Fail(error)) => {
                    if error.kind() == ErrorKind::Corrupt {
                        self.mark_corrupt(access, during, &error);
                    }
                    return Err(error);
                }
            }
        }
    }

    /// Has the host reserve space for a table that is about to be made, and notes that in the engine.
    fn reserve_for(
        &self,
        access: &mut impl EngineAccess,
        during: During,
        (offset, len): (u64, u64),
    ) -> Result<()> {
        let shared = during == During::Request && access.exclusive().is_none();
        // Where reserving means writing zeroes, they must not come after the table of another request that needed the
        // same space.
        let _one = shared.then(|| {
            let reserving = self.reserving.lock();
            reserving.unwrap_or_else(std::sync::PoisonError::into_inner)
        });
        if !(shared && access.with(|engine| engine.is_reserved(offset))) {
            self.reserve_table(offset, len)?;
            access.with(|engine| engine.reserved(offset));
        }
        Ok(())
    }

    /// Makes room in the refcount table, which ended at `end`, for an operation that may do so.
    fn make_room(&self, access: &mut impl EngineAccess, during: During, end: u64) -> Result<()> {
        if during == During::Commit {
            return Err(Error::corrupt("the refcount table is too small"));
        }
        if let Some(engine) = access.exclusive() {
            return self.grow_refcount_table(engine);
        }
        let mut engine = self.engine_exclusive();
        // Another request may have done it meanwhile.
        match engine.refcount_table_end() == end {
            true => self.grow_refcount_table(&mut engine),
            false => Ok(()),
        }
    }

    fn mark_corrupt(&self, access: &mut impl EngineAccess, during: During, error: &Error) {
        match (access.exclusive(), during) {
            (Some(engine), _) => self.signal_corruption(engine, error),
            (None, During::Request) => {
                self.signal_corruption(&mut self.engine_exclusive(), error);
            }
            // This commit keeps others from writing the header.
            (None, During::Commit) => access.with(|engine| self.signal_corruption(engine, error)),
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
            Some(kept) => kept.writer.set_len(len, set_len),
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
        let switch = self.retry(engine, During::Commit, |engine| {
            engine.attempt(Engine::grow_refcount_table)
        })?;
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
