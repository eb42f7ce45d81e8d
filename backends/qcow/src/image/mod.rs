//! An open image of either format, with its backing chain.

mod amend;
mod bitmaps;
pub(crate) mod chain;
pub(crate) mod create;
mod files;
mod info;
mod nested;
mod open;
mod plan;
mod resize;
mod snapshots;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use qcow_format::Format;

use crate::error::{Error, ErrorKind, Result};
use crate::formats::backing_disk::BackingDisk;
use crate::formats::plan::Plan;
use crate::formats::qcow2::journal::file::Beside;
use crate::formats::references::References;
use crate::formats::{Driver, Opening, entry};
use crate::options::OpenOptions;
use crate::storage::Storage;
use crate::storage::buffer::{Destination, Source};
use crate::storage::lock::FileLock;
use crate::storage::sync::{FileSyncs, SyncState, Synced};
use crate::storage::window::Window;

/// An open image. `Send` and `Sync`: several threads may read, write and flush it at once.
pub struct Image {
    path: PathBuf,
    pub(crate) driver: Box<dyn Driver>,
    backing: Option<Arc<Image>>,
    writable: bool,
    sync_state: SyncState,
    /// Of the files that plans count, in their order.
    file_syncs: Vec<FileSyncs>,
    _lock: Option<FileLock>,
    data_lock: Option<FileLock>,
}

/// Size limits of one I/O, so that sums cannot overflow.
const MAX_OFFSET: u64 = 1 << 63;

impl Image {
    pub(crate) fn assemble(
        storage: Box<dyn Storage>,
        path: &Path,
        options: &OpenOptions,
        (lock, journal): (Option<FileLock>, Option<Beside>),
    ) -> Result<Self> {
        let mut storage = storage;
        let mut start = 0u64;
        for (offset, size) in &options.windows {
            storage = Box::new(Window::new(storage, *offset, *size)?);
            start = start.saturating_add(*offset);
        }
        let sync_state = SyncState::default();
        let (storage, syncs) = Synced::new(Arc::from(storage), &sync_state);
        let driver = (entry(options.format).open)(Opening {
            storage: Arc::new(storage),
            start,
            options,
            journal,
        })?;
        Ok(Self {
            path: path.to_path_buf(),
            driver,
            backing: None,
            writable: options.writable,
            sync_state,
            file_syncs: vec![syncs],
            _lock: lock,
            data_lock: None,
        })
    }

    /// What this image does not hold is read from `below` from now on.
    #[must_use]
    pub fn over(mut self, backing: Arc<Image>) -> Self {
        self.backing = Some(backing);
        self
    }

    fn backing_disk(&self) -> Option<&dyn BackingDisk> {
        self.backing
            .as_deref()
            .map(|backing| backing as &dyn BackingDisk)
    }

    pub(crate) fn set_data_file(
        &mut self,
        data: Arc<dyn Storage>,
        path: PathBuf,
        lock: Option<FileLock>,
    ) {
        let (data, syncs) = Synced::new(data, &self.sync_state);
        self.driver.set_data_file(Box::new(data), path);
        self.file_syncs.push(syncs);
        self.data_lock = lock;
    }

    /// Names of the files this image refers to: backing file, its format, external data file.
    pub(crate) fn references(&self) -> References {
        self.driver.references()
    }

    /// The name it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its format.
    pub fn format(&self) -> Format {
        self.driver.format()
    }

    /// Size of the disk in bytes.
    pub fn virtual_size(&self) -> u64 {
        self.driver.size()
    }

    /// Whether it was opened for writing.
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// Cluster size, of formats that have clusters: the natural granularity of discards and allocation.
    pub fn cluster_size(&self) -> Option<u64> {
        self.driver.cluster_size()
    }

    /// The backing image, if it was opened.
    pub fn backing(&self) -> Option<&Arc<Image>> {
        self.backing.as_ref()
    }
}

/// Reading and writing.
impl Image {
    pub(crate) fn check_range(&self, offset: u64, len: u64) -> Result<()> {
        self.driver.check_readable()?;
        match offset.checked_add(len) {
            Some(end) if end <= self.virtual_size() && end <= MAX_OFFSET => Ok(()),
            _ => Err(Error::new(
                ErrorKind::OutOfRange,
                format!(
                    "range {offset:#x}+{len:#x} is outside the disk of {:#x} bytes",
                    self.virtual_size()
                ),
            )),
        }
    }

    pub(crate) fn check_writable(&self) -> Result<()> {
        if self.writable {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::ReadOnly,
            format!("{}: opened read-only", self.path.display()),
        ))
    }

    /// Fills `buf` from `offset` of the disk.
    pub fn read_at(&self, offset: u64, mut buf: &mut [u8]) -> Result<()> {
        self.read_into(offset, &mut buf)
    }

    /// Fills `dst` from `offset` of the disk.
    pub fn read_into(&self, offset: u64, dst: &mut dyn Destination) -> Result<()> {
        let len = dst.len();
        self.check_range(offset, len as u64)?;
        self.read_part(offset, dst, 0, len)
    }

    /// Writes `buf` at `offset` of the disk. Durable after the next [`Image::flush`].
    pub fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.write_from(offset, &buf)
    }

    /// Writes `src` at `offset` of the disk. Durable after the next [`Image::flush`].
    pub fn write_from(&self, offset: u64, src: &dyn Source) -> Result<()> {
        self.check_writable()?;
        let len = src.len();
        self.check_range(offset, len as u64)?;
        self.driver
            .write(self.backing_disk(), offset, src)
            .map_err(|error| error.within(self.path.display()))
    }

    /// Makes the range read as zeroes; with `may_unmap`, its space may be given up.
    pub fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> Result<()> {
        self.check_writable()?;
        self.check_range(offset, len)?;
        self.driver
            .write_zeroes(self.backing_disk(), offset, len, may_unmap)
            .map_err(|error| error.within(self.path.display()))
    }

    /// The guest no longer needs the range. It then reads as zeroes or as before; never as data of a backing image.
    pub fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.check_writable()?;
        self.check_range(offset, len)?;
        self.driver
            .discard(self.backing.is_some(), offset, len)
            .map_err(|error| error.within(self.path.display()))
    }

    /// Makes everything written so far durable. A read-only image has nothing to flush.
    ///
    /// # Errors
    /// Something may be lost; once that is so, no flush succeeds until the image is opened anew (see
    /// [`Image::flush_error`]).
    pub fn flush(&self) -> Result<()> {
        if !self.writable {
            return Ok(());
        }
        self.check_before_flush()?;
        self.driver
            .flush()
            .map_err(|error| error.within(self.path.display()))
    }

    /// Whether something that was written is known to this process alone, because the tables that lead to it are not in
    /// the file yet: if the process were killed now, another one would not find it. After [`Image::secure`] nothing is.
    pub fn is_ahead(&self) -> bool {
        self.driver.is_ahead()
    }

    /// Makes sure that what was written so far is found by whoever opens the image next, even if this process is
    /// killed: notes it in the journal ([`crate::Journal`]) or, without one, flushes where tables are not in the file
    /// yet. A power cut is another matter: see [`Image::flush`].
    pub fn secure(&self) -> Result<()> {
        self.driver
            .secure()
            .map_err(|error| error.within(self.path.display()))
    }

    /// Whether a journal is kept.
    pub fn has_journal(&self) -> bool {
        self.driver.has_journal()
    }

    /// The journal's file, and its device and inode, for a process that may not remove it itself: once [`Image::close`]
    /// has succeeded, it is empty and needed no more.
    pub fn journal_file(&self) -> Option<(&Path, (u64, u64))> {
        self.driver.journal_file()
    }

    /// Writes `buf` as compressed clusters where that saves space (qcow2 only). `offset` is cluster-aligned, and so is
    /// the length unless it ends at the end of the disk. What is already allocated there is not overwritten in place.
    pub fn write_compressed(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.check_writable()?;
        self.check_range(offset, buf.len() as u64)?;
        self.driver
            .write_compressed(offset, buf)
            .map_err(|error| error.within(self.path.display()))
    }

    /// Flushes and closes the image, and those of its backing chain that nobody else uses. Unlike dropping it, this
    /// reports errors, and those of flushes before it.
    pub fn close(mut self) -> Result<()> {
        let backing = self.backing.take().and_then(Arc::into_inner);
        let closed = self.close_alone();
        drop(self);
        backing.map_or(Ok(()), Self::close).and(closed)
    }

    fn close_alone(&self) -> Result<()> {
        if !self.writable {
            return Ok(());
        }
        self.driver
            .close()
            .map_err(|error| error.within(self.path.display()))?;
        self.check_before_flush()?;
        self.flush_error().map_or(Ok(()), Err)
    }
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Image")
            .field("path", &self.path)
            .field("format", &self.format())
            .finish_non_exhaustive()
    }
}

impl BackingDisk for Image {
    fn size(&self) -> u64 {
        self.virtual_size()
    }

    fn read_part(
        &self,
        offset: u64,
        dst: &mut dyn Destination,
        at: usize,
        len: usize,
    ) -> Result<()> {
        let inside = usize::try_from(self.virtual_size().saturating_sub(offset))
            .unwrap_or(usize::MAX)
            .min(len);
        if inside < len {
            dst.zero(at + inside, len - inside);
        }
        if inside == 0 {
            return Ok(());
        }
        self.driver
            .read(self.backing_disk(), offset, dst, (at, inside))
            .map_err(|error| error.within(self.path.display()))
    }

    fn plan_part(
        &self,
        plan: &mut Plan,
        first: usize,
        offset: u64,
        part: (usize, usize),
    ) -> Result<bool> {
        self.plan_read_part(plan, first, offset, part)
    }
}
