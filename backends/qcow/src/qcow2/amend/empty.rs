//! Emptying an overlay: everything it holds is dropped, so that the backing file shows again.

use crate::engine::Drop;
use crate::error::Result;
use crate::qcow2::Qcow2;

impl Qcow2 {
    /// Drops every cluster of the disk. Snapshots keep theirs.
    pub(crate) fn make_empty(&self) -> Result<()> {
        self.note_change(0, self.size())?;
        let _guard = self.ranges.exclusive(0..u64::MAX);
        let end = self.size().next_multiple_of(self.cluster_size);
        self.drop_listed(0..end, Drop::Unallocate)?;
        let mut engine = self.engine();
        self.commit(&mut engine, true)
    }
}
