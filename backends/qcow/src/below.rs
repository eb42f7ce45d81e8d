//! The image below another one in a backing chain, as the upper one sees it.

use crate::buffer::Destination;
use crate::error::Result;
use crate::plan::Plan;

/// What shows where an image holds nothing itself.
pub(crate) trait Below {
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

    /// Adds where the part `(at, len)` of a request is, which begins at `offset` of this disk; its files are counted from `first`.
    /// Whether that can be said.
    fn plan_part(
        &self,
        plan: &mut Plan,
        first: usize,
        offset: u64,
        part: (usize, usize),
    ) -> Result<bool>;
}
