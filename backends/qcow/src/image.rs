//! An open image of either format, with its backing chain.

mod amend;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::backing;
use crate::buffer::{Destination, Source};
use crate::error::{Error, ErrorKind, Result};
use crate::lock::FileLock;
use crate::options::{Format, OpenOptions, Preallocation};
use crate::qcow2::Qcow2;
use crate::raw::Raw;
use crate::report::{CheckResult, Extent, Info, Repair, SnapshotInfo};
use crate::storage::Storage;
use crate::window::Window;

/// An open image. `Send` and `Sync`: several threads may read, write and flush it at once.
pub struct Image {
    path: PathBuf,
    pub(crate) layer: Layer,
    backing: Option<Arc<Image>>,
    writable: bool,
    _lock: Option<FileLock>,
    data_lock: Option<FileLock>,
}

/// The other files an image names.
#[derive(Debug, Clone, Default)]
pub(crate) struct References {
    pub(crate) backing: Option<String>,
    pub(crate) backing_format: Option<String>,
    pub(crate) data_file: Option<String>,
}

pub(crate) enum Layer {
    Raw(Raw),
    Qcow2(Box<Qcow2>),
}

/// Size limits of one I/O, so that sums cannot overflow.
const MAX_OFFSET: u64 = 1 << 63;

impl Image {
    /// Opens `path` as the options say.
    ///
    /// # Errors
    /// The file is missing, locked, not of the declared format, damaged, or uses an unknown feature; the message names it.
    pub fn open(path: impl AsRef<Path>, options: &OpenOptions) -> Result<Self> {
        backing::open_top(path.as_ref(), options)
    }

    /// Opens an image from an open file; `path` is its name in messages, and what relative backing names are relative to.
    pub fn open_file(file: File, path: impl AsRef<Path>, options: &OpenOptions) -> Result<Self> {
        backing::open_top_file(file, path.as_ref(), options)
    }

    /// Opens an image from storage of the caller's own; no locks are taken.
    pub fn open_storage(
        storage: Box<dyn Storage>,
        path: impl AsRef<Path>,
        options: &OpenOptions,
    ) -> Result<Self> {
        backing::open_storage(storage, path.as_ref(), options)
    }

    pub(crate) fn assemble(
        storage: Box<dyn Storage>,
        path: &Path,
        options: &OpenOptions,
        lock: Option<FileLock>,
    ) -> Result<Self> {
        let mut storage = storage;
        let mut start = 0u64;
        for (offset, size) in &options.windows {
            storage = Box::new(Window::new(storage, *offset, *size)?);
            start = start.saturating_add(*offset);
        }
        let layer = match options.format {
            Format::Raw => Layer::Raw(Raw::new(
                storage,
                start,
                options.discard == crate::options::Discard::Unmap,
            )?),
            Format::Qcow2 => Layer::Qcow2(Box::new(Qcow2::open(storage, options)?)),
        };
        Ok(Self {
            path: path.to_path_buf(),
            layer,
            backing: None,
            writable: options.writable,
            _lock: lock,
            data_lock: None,
        })
    }

    pub(crate) fn set_backing(&mut self, backing: Option<Arc<Image>>) {
        self.backing = backing;
    }

    pub(crate) fn set_data_file(
        &mut self,
        data: Arc<dyn Storage>,
        path: PathBuf,
        lock: Option<FileLock>,
    ) {
        if let Layer::Qcow2(qcow2) = &mut self.layer {
            qcow2.set_data_file(data, path);
        }
        self.data_lock = lock;
    }

    /// Names of the files this image refers to: backing file, its format, external data file.
    pub(crate) fn references(&self) -> References {
        match &self.layer {
            Layer::Raw(_) => References::default(),
            Layer::Qcow2(qcow2) => qcow2.references(),
        }
    }

    /// The name it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its format.
    pub fn format(&self) -> Format {
        match &self.layer {
            Layer::Raw(_) => Format::Raw,
            Layer::Qcow2(_) => Format::Qcow2,
        }
    }

    /// Size of the disk in bytes.
    pub fn virtual_size(&self) -> u64 {
        match &self.layer {
            Layer::Raw(raw) => raw.size(),
            Layer::Qcow2(qcow2) => qcow2.size(),
        }
    }

    /// Whether it was opened for writing.
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// Cluster size, of formats that have clusters: the natural granularity of discards and allocation.
    pub fn cluster_size(&self) -> Option<u64> {
        match &self.layer {
            Layer::Raw(_) => None,
            Layer::Qcow2(qcow2) => Some(qcow2.cluster_size()),
        }
    }

    /// The backing image, if it was opened.
    pub fn backing(&self) -> Option<&Arc<Image>> {
        self.backing.as_ref()
    }
}

/// Reading and writing.
impl Image {
    pub(crate) fn check_range(&self, offset: u64, len: u64) -> Result<()> {
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

    /// Reads `len` bytes to `dst[at..]`; what lies beyond the end of the disk reads as zeroes.
    pub(crate) fn read_part(
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
        match &self.layer {
            Layer::Raw(raw) => raw.read(offset, dst, at, inside),
            Layer::Qcow2(qcow2) => qcow2.read(self.backing.as_deref(), offset, dst, at, inside),
        }
        .map_err(|error| error.within(self.path.display()))
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
        match &self.layer {
            Layer::Raw(raw) => raw.write(offset, src, 0, len),
            Layer::Qcow2(qcow2) => qcow2.write(self.backing.as_deref(), offset, src, len),
        }
        .map_err(|error| error.within(self.path.display()))
    }

    /// Makes the range read as zeroes; with `may_unmap`, its space may be given up.
    pub fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> Result<()> {
        self.check_writable()?;
        self.check_range(offset, len)?;
        match &self.layer {
            Layer::Raw(raw) => raw.write_zeroes(offset, len, may_unmap),
            Layer::Qcow2(qcow2) => {
                qcow2.write_zeroes(self.backing.as_deref(), offset, len, may_unmap)
            }
        }
        .map_err(|error| error.within(self.path.display()))
    }

    /// The guest no longer needs the range. It then reads as zeroes or as before; never as data of a backing image.
    pub fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.check_writable()?;
        self.check_range(offset, len)?;
        match &self.layer {
            Layer::Raw(raw) => raw.discard(offset, len),
            Layer::Qcow2(qcow2) => qcow2.discard(self.backing.is_some(), offset, len),
        }
        .map_err(|error| error.within(self.path.display()))
    }

    /// Makes everything written so far durable. A read-only image has nothing to flush.
    pub fn flush(&self) -> Result<()> {
        if !self.writable {
            return Ok(());
        }
        match &self.layer {
            Layer::Raw(raw) => raw.flush(),
            Layer::Qcow2(qcow2) => qcow2.flush(),
        }
        .map_err(|error| error.within(self.path.display()))
    }

    /// Whether something that was written is known to this process alone, because the tables that lead to it are not in the file yet:
    /// if the process were killed now, another one would not find it. After [`Image::flush`] nothing is.
    pub fn is_ahead(&self) -> bool {
        match &self.layer {
            Layer::Raw(_) => false,
            Layer::Qcow2(qcow2) => qcow2.is_ahead(),
        }
    }

    /// Notes in `memory`, which outlives this process, what the file lacks, so that [`Image::is_ahead`] no longer holds after each write
    /// that allocates; and makes the changes that a former process noted there. `None`: no longer. Nothing is noted, and all is as
    /// without it, for images that need no notes (raw) or would be repaired at the next open anyway (lazy refcounts).
    ///
    /// # Errors
    /// What was noted is damaged or does not fit the image; it is left out then, and notes are taken. Or it could not be written.
    pub fn set_journal(&self, memory: Option<Box<dyn crate::Keep>>) -> Result<()> {
        match &self.layer {
            Layer::Qcow2(qcow2) if self.writable => qcow2.set_journal(memory),
            _ => Ok(()),
        }
        .map_err(|error| error.within(self.path.display()))
    }

    /// Writes `buf` as compressed clusters where that saves space (qcow2 only). `offset` is cluster-aligned, and so is the
    /// length unless it ends at the end of the disk. What is already allocated there is not overwritten in place.
    pub fn write_compressed(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.check_writable()?;
        self.check_range(offset, buf.len() as u64)?;
        match &self.layer {
            Layer::Raw(_) => Err(Error::unsupported("raw images have no compression")),
            Layer::Qcow2(qcow2) => qcow2.write_compressed(offset, buf),
        }
        .map_err(|error| error.within(self.path.display()))
    }

    /// Flushes and closes the image; unlike dropping it, this reports errors.
    pub fn close(self) -> Result<()> {
        if !self.writable {
            return Ok(());
        }
        match &self.layer {
            Layer::Raw(raw) => raw.flush(),
            Layer::Qcow2(qcow2) => qcow2.close(),
        }
        .map_err(|error| error.within(self.path.display()))
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

/// Facts.
impl Image {
    /// How the beginning of `offset..offset + len` is stored in this image alone: the first extent, at most `len` long.
    pub fn map_layer(&self, offset: u64, len: u64) -> Result<Extent> {
        self.check_range(offset, len)?;
        if len == 0 {
            return Err(Error::invalid("cannot map a range of 0 bytes"));
        }
        match &self.layer {
            Layer::Raw(raw) => raw.status(offset, len).map(|(length, data)| Extent {
                start: offset,
                length,
                depth: 0,
                present: true,
                zero: !data,
                data,
                compressed: false,
                offset: Some(raw.place(offset)),
                file: Some(self.path.clone()),
            }),
            Layer::Qcow2(qcow2) => qcow2.map(offset, len, &self.path),
        }
        .map_err(|error| error.within(self.path.display()))
    }

    /// How the beginning of `offset..offset + len` is stored in the chain: the first extent, at most `len` long.
    pub fn map(&self, offset: u64, len: u64) -> Result<Extent> {
        let mut extent = self.map_layer(offset, len)?;
        let (mut image, mut depth) = (self, 0);
        while !extent.present {
            let Some(below) = image.backing.as_deref() else {
                break;
            };
            depth += 1;
            let inside = below.virtual_size().saturating_sub(offset);
            if inside == 0 {
                // QEMU: beyond a short backing file there are zeroes, decided by the image that lies on it.
                extent = Extent {
                    present: true,
                    zero: true,
                    depth: depth - 1,
                    ..extent
                };
                break;
            }
            extent = below.map_layer(offset, extent.length.min(inside))?;
            extent.depth = depth;
            image = below;
        }
        if !extent.present {
            extent.zero = true;
        }
        Ok(extent)
    }

    /// Everything the header says. Opens no file.
    pub fn info(&self) -> Result<Info> {
        match &self.layer {
            Layer::Raw(raw) => Ok(Info {
                filename: self.path.clone(),
                format: Format::Raw,
                virtual_size: raw.size(),
                actual_size: raw.storage.allocated().unwrap_or(0),
                file_size: raw.storage.len().unwrap_or(0),
                cluster_size: None,
                backing_filename: None,
                full_backing_filename: None,
                backing_format: None,
                snapshots: Vec::new(),
                qcow2: None,
            }),
            Layer::Qcow2(qcow2) => qcow2.info(&self.path),
        }
        .map_err(|error| error.within(self.path.display()))
    }

    /// Checks refcounts and tables (qcow2 only), and repairs as far as `repair` allows.
    pub fn check(&self, repair: Repair) -> Result<CheckResult> {
        if repair != Repair::None {
            self.check_writable()?;
        }
        match &self.layer {
            Layer::Raw(_) => Err(Error::unsupported(
                "this image format does not support checks",
            )),
            Layer::Qcow2(qcow2) => qcow2.check(repair),
        }
        .map_err(|error| error.within(self.path.display()))
    }
}

/// Changes of the image as a whole.
impl Image {
    /// Changes the size of the disk. Shrinking drops what lies beyond the new end.
    pub fn resize(&self, size: u64, preallocation: Preallocation) -> Result<()> {
        self.check_writable()?;
        match &self.layer {
            Layer::Raw(raw) => {
                let old = raw.size();
                raw.resize(size)?;
                if old == 0 && preallocation == Preallocation::Off {
                    crate::create::allocate_first_block(&*raw.storage, size)
                        .map_err(|error| Error::io("write error", error))?;
                }
                crate::create::preallocate_raw(&*raw.storage, old, size, preallocation)
            }
            Layer::Qcow2(qcow2) => qcow2.resize(self.backing.as_deref(), size, preallocation),
        }
        .map_err(|error| error.within(self.path.display()))
    }

    /// Reserves space for a range of the disk that has none.
    pub(crate) fn preallocate(
        &self,
        start: u64,
        end: u64,
        preallocation: Preallocation,
    ) -> Result<()> {
        self.check_writable()?;
        match &self.layer {
            Layer::Raw(raw) => {
                crate::create::preallocate_raw(&*raw.storage, start, end, preallocation)
            }
            Layer::Qcow2(qcow2) => qcow2.preallocate(start, end, preallocation),
        }
        .map_err(|error| error.within(self.path.display()))
    }

    fn qcow2(&self, what: &str) -> Result<&Qcow2> {
        match &self.layer {
            Layer::Raw(_) => Err(Error::unsupported(format!(
                "{}: raw images have no {what}",
                self.path.display()
            ))),
            Layer::Qcow2(qcow2) => Ok(qcow2),
        }
    }

    /// The internal snapshots.
    pub fn snapshots(&self) -> Result<Vec<SnapshotInfo>> {
        match &self.layer {
            Layer::Raw(_) => Ok(Vec::new()),
            Layer::Qcow2(qcow2) => Ok(qcow2.snapshots()),
        }
    }

    /// Keeps the present state of the disk under `name`.
    pub fn snapshot_create(&self, name: &str) -> Result<()> {
        self.check_writable()?;
        self.qcow2("snapshots")?
            .snapshot_create(name)
            .map_err(|error| error.within(self.path.display()))
    }

    /// Makes the disk what it was in the snapshot with this id or name.
    pub fn snapshot_apply(&self, id_or_name: &str) -> Result<()> {
        self.check_writable()?;
        self.qcow2("snapshots")?
            .snapshot_apply(self.backing.as_deref(), id_or_name)
            .map_err(|error| error.within(self.path.display()))
    }

    /// Forgets the snapshot with this id or name.
    pub fn snapshot_delete(&self, id_or_name: &str) -> Result<()> {
        self.check_writable()?;
        self.qcow2("snapshots")?
            .snapshot_delete(id_or_name)
            .map_err(|error| error.within(self.path.display()))
    }

    /// Adds a persistent dirty bitmap; without a granularity, with QEMU's default one.
    pub fn bitmap_add(&self, name: &str, granularity: Option<u64>, enabled: bool) -> Result<()> {
        self.check_writable()?;
        let granularity =
            granularity.unwrap_or_else(|| self.cluster_size().unwrap_or(65536).clamp(4096, 65536));
        self.qcow2("bitmaps")?
            .bitmap_add(name, granularity, enabled)
            .map_err(|error| error.within(self.path.display()))
    }

    /// Removes a bitmap, even one that cannot be trusted.
    pub fn bitmap_remove(&self, name: &str) -> Result<()> {
        self.check_writable()?;
        self.qcow2("bitmaps")?
            .bitmap_remove(name)
            .map_err(|error| error.within(self.path.display()))
    }

    /// Marks all of the disk as clean in a bitmap.
    pub fn bitmap_clear(&self, name: &str) -> Result<()> {
        self.check_writable()?;
        self.qcow2("bitmaps")?
            .bitmap_clear(name)
            .map_err(|error| error.within(self.path.display()))
    }

    /// Enables or disables a bitmap: whether writers keep it up to date.
    pub fn bitmap_enable(&self, name: &str, enabled: bool) -> Result<()> {
        self.check_writable()?;
        self.qcow2("bitmaps")?
            .bitmap_enable(name, enabled)
            .map_err(|error| error.within(self.path.display()))
    }

    /// The ranges (start, length) of the disk that a bitmap says are dirty.
    pub fn bitmap_ranges(&self, name: &str) -> Result<Vec<(u64, u64)>> {
        self.qcow2("bitmaps")?
            .bitmap_ranges(name)
            .map_err(|error| error.within(self.path.display()))
    }

    /// Marks ranges of the disk as dirty in a bitmap: with those of another bitmap, merges that into it.
    pub fn bitmap_merge(&self, name: &str, ranges: &[(u64, u64)]) -> Result<()> {
        self.check_writable()?;
        self.qcow2("bitmaps")?
            .bitmap_merge(name, ranges)
            .map_err(|error| error.within(self.path.display()))
    }

    /// Records another backing file (`None`: none), without looking at any content.
    pub fn change_backing_file(&self, name: Option<&str>, format: Option<Format>) -> Result<()> {
        self.record_backing_file(name, format.map(Format::name))
    }

    /// As [`Image::change_backing_file`], with a format that this library need not have: what is recorded is opened by others.
    pub fn record_backing_file(&self, name: Option<&str>, format: Option<&str>) -> Result<()> {
        self.check_writable()?;
        self.qcow2("backing file")?
            .change_backing_file(name, format)
            .map_err(|error| error.within(self.path.display()))
    }
}
