//! The image formats: one folder each, behind one trait.
//!
//! To add a format: a folder with a [`Driver`] and a [`FormatEntry`], and a variant of [`Format`], for which the compiler
//! then asks for its line in [`entry`].

pub(crate) mod backing_disk;
pub(crate) mod plan;
pub(crate) mod qcow2;
pub(crate) mod raw;
pub(crate) mod references;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use qcow_format::Format;

use crate::error::{Error, Result};
use crate::formats::backing_disk::BackingDisk;
use crate::formats::plan::Plan;
use crate::formats::qcow2::journal::file::Beside;
use crate::formats::qcow2::{DirtyRanges, Qcow2};
use crate::formats::references::References;
use crate::options::{CreateOptions, OpenOptions, Preallocation};
use crate::report::{CheckResult, Info, Repair, SnapshotInfo};
use crate::storage::Storage;
use crate::storage::buffer::{Destination, Source};
use crate::storage::extent::Extent;
use crate::storage::range_lock::RangeGuard;

/// What a format's folder provides.
pub(crate) struct FormatEntry {
    /// Opens the image in a storage.
    pub(crate) open: fn(Opening<'_>) -> Result<Box<dyn Driver>>,
    /// Refuses options that are out of range, or contradict each other.
    pub(crate) check_create: fn(&CreateOptions) -> Result<()>,
    /// Makes an image with nothing allocated.
    pub(crate) create: fn(&dyn Storage, &CreateOptions) -> Result<()>,
    /// Reserves what a new image is to have allocated. False: that takes an open image.
    pub(crate) allocate: fn(&dyn Storage, &CreateOptions) -> Result<bool>,
}

/// The folder of a format.
pub(crate) fn entry(format: Format) -> &'static FormatEntry {
    match format {
        Format::Raw => &raw::ENTRY,
        Format::Qcow2 => &qcow2::ENTRY,
    }
}

/// An image that is to be opened.
pub(crate) struct Opening<'a> {
    pub(crate) storage: Arc<dyn Storage>,
    /// Where the storage begins in the file.
    pub(crate) start: u64,
    pub(crate) options: &'a OpenOptions,
    /// The journal that was found beside the image.
    pub(crate) journal: Option<Beside>,
}

/// Another request is about to move clusters of the range.
pub(crate) struct Busy;

/// An open image of one format: what [`crate::Image`] needs of it. Offsets are those of the disk, in bytes; ranges were
/// checked against its size, and writes against the image being writable. Errors do not name the file.
///
/// Every format implements the methods without a default. What each of the next formats will implement besides:
///
/// * vmdk: `cluster_size` (grains); `references` and `record_backing` (parentCID and parentFileNameHint); `storages`
///   (the extents); `write_compressed` (streamOptimized).
/// * vhdx: `cluster_size` (blocks); `references` (the parent locator); `check`. Opening replays the log that the format
///   has in its file, and `is_ahead`, `secure` and `close` keep it.
/// * vdi: `cluster_size` (blocks); `check`.
/// * vpc: `cluster_size` (blocks of dynamic disks); `references` (the parent locator of differencing disks).
/// * LUKS: `check_readable` (it needs a key). Requests pass through the cipher sector by sector, so that `plan_read`
///   returns false and `plan_write` nothing; the disk begins behind the header, which `info` describes.
/// * An NBD source: `map` asks for the server's block status. It has no files, so `storages` is empty and nothing is
///   planned.
///
/// A format whose images have snapshots or bitmaps also implements [`Snapshots`] or [`Bitmaps`].
pub(crate) trait Driver: Send + Sync {
    fn format(&self) -> Format;

    /// Size of the disk.
    fn size(&self) -> u64;

    /// The natural granularity of discards and allocation.
    fn cluster_size(&self) -> Option<u64> {
        None
    }

    /// The other files the image names.
    fn references(&self) -> References {
        References::default()
    }

    /// Gives the image the external data file it names.
    fn set_data_file(&mut self, _data: Box<dyn Storage>, _path: PathBuf) {}

    /// The files that plans count: the image's own, then its external data file.
    fn storages(&self) -> Vec<&dyn Storage>;

    /// # Errors
    /// The data can neither be read nor written, for instance because it is encrypted.
    fn check_readable(&self) -> Result<()> {
        Ok(())
    }

    /// Reads `len` bytes to `dst[at..]`. `backing` shows where this image holds nothing.
    fn read(
        &self,
        backing: Option<&dyn BackingDisk>,
        offset: u64,
        dst: &mut dyn Destination,
        part: (usize, usize),
    ) -> Result<()>;

    fn write(&self, backing: Option<&dyn BackingDisk>, offset: u64, src: &dyn Source)
    -> Result<()>;

    /// Makes a range read as zeroes; with `may_unmap`, its space may be freed.
    fn write_zeroes(
        &self,
        backing: Option<&dyn BackingDisk>,
        offset: u64,
        len: u64,
        may_unmap: bool,
    ) -> Result<()>;

    /// Frees a range, which must not show the backing file then.
    fn discard(&self, has_backing: bool, offset: u64, len: u64) -> Result<()>;

    fn write_compressed(&self, _offset: u64, _buf: &[u8]) -> Result<()> {
        Err(self.has_no("compression"))
    }

    /// Makes everything written so far durable.
    fn flush(&self) -> Result<()>;

    /// Flushes, and leaves the image as one that was closed in order.
    fn close(&self) -> Result<()> {
        self.flush()
    }

    /// See [`crate::Image::is_ahead`].
    fn is_ahead(&self) -> bool {
        false
    }

    /// See [`crate::Image::secure`].
    fn secure(&self) -> Result<()> {
        Ok(())
    }

    /// See [`crate::Image::has_journal`].
    fn has_journal(&self) -> bool {
        false
    }

    /// See [`crate::Image::journal_file`].
    fn journal_file(&self) -> Option<(&Path, (u64, u64))> {
        None
    }

    /// Writes no metadata from now on.
    fn stop(&self, _why: &Error) {}

    /// Keeps the clusters of a range where they are until the guard is dropped, for a plan to read. No guard: they
    /// never move.
    fn try_hold(&self, _offset: u64, _len: usize) -> Result<Option<RangeGuard>, Busy> {
        Ok(None)
    }

    /// Adds to `plan` where part `(at, len)` of a read lies, which begins at `offset`. `first` is the number of this
    /// image's first file. Returns false if finding out takes I/O.
    fn plan_read(
        &self,
        plan: &mut Plan,
        backing: (Option<&dyn BackingDisk>, usize),
        offset: u64,
        part: (usize, usize),
    ) -> Result<bool>;

    /// See [`crate::Image::plan_write`].
    fn plan_write(&self, offset: u64, len: usize) -> Result<Option<Plan>>;

    /// The file that guest data is written to.
    fn data_storage(&self) -> Result<&dyn Storage>;

    /// Whether a flush needs nothing but a sync of the files.
    fn may_flush_files(&self) -> Result<bool> {
        Ok(true)
    }

    /// The first extent of a range, in this image alone; `path` is its name.
    fn map(&self, offset: u64, len: u64, path: &Path) -> Result<Extent>;

    /// What the header says.
    fn info(&self, path: &Path) -> Result<Info>;

    /// Changes the size of the disk.
    fn resize(
        &self,
        backing: Option<&dyn BackingDisk>,
        size: u64,
        preallocation: Preallocation,
    ) -> Result<()>;

    /// Reserves space for a range that has none.
    fn preallocate(&self, start: u64, end: u64, preallocation: Preallocation) -> Result<()>;

    /// See [`crate::Image::repaired`].
    fn repaired(&self) -> Option<&CheckResult> {
        None
    }

    /// See [`crate::Image::check`].
    fn check(&self, _repair: Repair) -> Result<CheckResult> {
        Err(Error::unsupported(
            "this image format does not support checks",
        ))
    }

    /// Records another backing file, or none.
    fn record_backing(&self, _name: Option<&str>, _format: Option<&str>) -> Result<()> {
        Err(self.has_no("backing file"))
    }

    /// See [`crate::Image::make_empty`].
    fn make_empty(&self) -> Result<()> {
        Err(self.has_no("backing file"))
    }

    /// See [`crate::Image::set_incomplete`].
    fn set_incomplete(&self, _incomplete: bool) -> Result<bool> {
        Ok(false)
    }

    /// Its internal snapshots, of a format that has them.
    fn snapshots(&self) -> Option<&dyn Snapshots> {
        None
    }

    /// Its bitmaps, of a format that has them.
    fn bitmaps(&self) -> Option<&dyn Bitmaps> {
        None
    }

    /// For what only qcow2 has: versions, refcounts, external data files.
    fn as_qcow2(&self) -> Option<&Qcow2> {
        None
    }

    /// The error of what the format does not have.
    fn has_no(&self, what: &str) -> Error {
        Error::unsupported(format!("{} images have no {what}", self.format()))
    }
}

/// The internal snapshots of an image.
pub(crate) trait Snapshots {
    fn list(&self) -> Vec<SnapshotInfo>;
    fn create(&self, name: &str) -> Result<()>;
    fn apply(&self, backing: Option<&dyn BackingDisk>, id_or_name: &str) -> Result<()>;
    fn delete(&self, id_or_name: &str) -> Result<()>;
}

/// The persistent dirty bitmaps of an image.
pub(crate) trait Bitmaps {
    fn add(&self, name: &str, granularity: u64, enabled: bool) -> Result<()>;
    fn remove(&self, name: &str) -> Result<()>;
    fn clear(&self, name: &str) -> Result<()>;
    fn enable(&self, name: &str, enabled: bool) -> Result<()>;
    fn ranges(&self, name: &str) -> Result<DirtyRanges>;
    fn merge(&self, name: &str, ranges: &mut dyn Iterator<Item = Result<(u64, u64)>>)
    -> Result<()>;
}
