//! Changes of an image as a whole.

use crate::error::{Error, Result};
use crate::formats::qcow2::{DirtyRanges, Qcow2};
use crate::formats::raw;
use crate::image::{Image, Layer};
use crate::options::{Format, Preallocation};

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
                    raw::allocate_first_block(&*raw.storage, size)
                        .map_err(|error| Error::io("write error", error))?;
                }
                raw::preallocate(&*raw.storage, old, size, preallocation).inspect_err(|_| {
                    // The first error is the one to report.
                    let _ = raw.resize(old);
                })
            }
            Layer::Qcow2(qcow2) => qcow2.resize(self.backing_disk(), size, preallocation),
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
            Layer::Raw(raw) => raw::preallocate(&*raw.storage, start, end, preallocation),
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
            .snapshot_apply(self.backing_disk(), id_or_name)
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

    /// The ranges of the disk that a bitmap says are dirty. It is in memory then: up to 512 MiB, a bit for each of its granularity.
    pub fn bitmap_ranges(&self, name: &str) -> Result<DirtyRanges> {
        self.qcow2("bitmaps")?
            .bitmap_ranges(name)
            .map_err(|error| error.within(self.path.display()))
    }

    /// Marks ranges (start, length in bytes) of the disk as dirty in a bitmap: with those of another bitmap, merges that into it.
    ///
    /// # Errors
    /// A range is outside the disk: bitmaps of disks of other sizes are not merged.
    pub fn bitmap_merge(
        &self,
        name: &str,
        ranges: impl IntoIterator<Item = (u64, u64)>,
    ) -> Result<()> {
        self.check_writable()?;
        let checked = ranges.into_iter().map(|(start, len)| {
            self.check_range(start, len)?;
            Ok((start, len))
        });
        self.qcow2("bitmaps")?
            .bitmap_merge(name, checked)
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
