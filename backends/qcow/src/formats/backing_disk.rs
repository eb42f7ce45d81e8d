//! The backing disk of an image, as its overlay sees it.

use crate::error::Result;
use crate::formats::plan::Plan;
use crate::storage::buffer::Destination;

/// What an overlay reads where it holds nothing itself.
pub(crate) trait BackingDisk {
    /// Size of its disk in bytes.
    fn size(&self) -> u64;

    /// Reads `len` bytes to `dst[at..]`; what lies beyond the end of the disk reads as zeroes.
    fn read_part(
        &self,
        offset: u64,
        dst: &mut dyn Destination,
        at: usize,
        len: usize,
    ) -> Result<()>;

    /// Adds to `plan` where part `(at, len)` of a request lies, which begins at `offset` of this disk. `first` is the
    /// number of this disk's first file. Returns false if finding out takes I/O.
    fn plan_part(
        &self,
        plan: &mut Plan,
        first: usize,
        offset: u64,
        part: (usize, usize),
    ) -> Result<bool>;
}
