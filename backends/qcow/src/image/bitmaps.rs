//! Persistent dirty bitmaps.

use crate::error::Result;
use crate::formats::Bitmaps;
use crate::formats::qcow2::DirtyRanges;
use crate::image::Image;

/// Bitmaps.
impl Image {
    fn bitmap_driver(&self) -> Result<&dyn Bitmaps> {
        let bitmaps = self.driver.bitmaps();
        bitmaps.ok_or_else(|| self.driver.has_no("bitmaps").within(self.path.display()))
    }

    /// Adds a persistent dirty bitmap; without a granularity, with QEMU's default one.
    pub fn bitmap_add(&self, name: &str, granularity: Option<u64>, enabled: bool) -> Result<()> {
        self.check_writable()?;
        let granularity =
            granularity.unwrap_or_else(|| self.cluster_size().unwrap_or(65536).clamp(4096, 65536));
        self.bitmap_driver()?
            .add(name, granularity, enabled)
            .map_err(|error| error.within(self.path.display()))
    }

    /// Removes a bitmap, even one that cannot be trusted.
    pub fn bitmap_remove(&self, name: &str) -> Result<()> {
        self.check_writable()?;
        self.bitmap_driver()?
            .remove(name)
            .map_err(|error| error.within(self.path.display()))
    }

    /// Marks all of the disk as clean in a bitmap.
    pub fn bitmap_clear(&self, name: &str) -> Result<()> {
        self.check_writable()?;
        self.bitmap_driver()?
            .clear(name)
            .map_err(|error| error.within(self.path.display()))
    }

    /// Enables or disables a bitmap: whether writers keep it up to date.
    pub fn bitmap_enable(&self, name: &str, enabled: bool) -> Result<()> {
        self.check_writable()?;
        self.bitmap_driver()?
            .enable(name, enabled)
            .map_err(|error| error.within(self.path.display()))
    }

    /// The ranges of the disk that a bitmap says are dirty. It is in memory then: up to 512 MiB, a bit for each of its
    /// granularity.
    pub fn bitmap_ranges(&self, name: &str) -> Result<DirtyRanges> {
        self.bitmap_driver()?
            .ranges(name)
            .map_err(|error| error.within(self.path.display()))
    }

    /// Marks ranges (start, length in bytes) of the disk as dirty in a bitmap: with those of another bitmap, merges
    /// that into it.
    ///
    /// # Errors
    /// A range is outside the disk: bitmaps of disks of other sizes are not merged.
    pub fn bitmap_merge(
        &self,
        name: &str,
        ranges: impl IntoIterator<Item = (u64, u64)>,
    ) -> Result<()> {
        self.check_writable()?;
        let mut checked = ranges.into_iter().map(|(start, len)| {
            self.check_range(start, len)?;
            Ok((start, len))
        });
        self.bitmap_driver()?
            .merge(name, &mut checked)
            .map_err(|error| error.within(self.path.display()))
    }
}
