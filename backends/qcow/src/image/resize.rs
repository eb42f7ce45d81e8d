//! The size of the disk, and the space it takes.

use crate::error::Result;
use crate::image::Image;
use crate::options::Preallocation;

/// Resizing.
impl Image {
    /// Changes the size of the disk. Shrinking drops what lies beyond the new end.
    pub fn resize(&self, size: u64, preallocation: Preallocation) -> Result<()> {
        self.check_writable()?;
        self.driver
            .resize(self.backing_disk(), size, preallocation)
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
        self.driver
            .preallocate(start, end, preallocation)
            .map_err(|error| error.within(self.path.display()))
    }
}
