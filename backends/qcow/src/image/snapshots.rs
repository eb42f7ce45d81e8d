//! Internal snapshots.

use crate::error::Result;
use crate::formats::Snapshots;
use crate::image::Image;
use crate::report::SnapshotInfo;

/// Snapshots.
impl Image {
    fn snapshot_driver(&self) -> Result<&dyn Snapshots> {
        let snapshots = self.driver.snapshots();
        snapshots.ok_or_else(|| self.driver.has_no("snapshots").within(self.path.display()))
    }

    /// The internal snapshots.
    pub fn snapshots(&self) -> Result<Vec<SnapshotInfo>> {
        Ok(self
            .driver
            .snapshots()
            .map_or_else(Vec::new, Snapshots::list))
    }

    /// Keeps the present state of the disk under `name`.
    pub fn snapshot_create(&self, name: &str) -> Result<()> {
        self.check_writable()?;
        self.snapshot_driver()?
            .create(name)
            .map_err(|error| error.within(self.path.display()))
    }

    /// Makes the disk what it was in the snapshot with this id or name.
    pub fn snapshot_apply(&self, id_or_name: &str) -> Result<()> {
        self.check_writable()?;
        self.snapshot_driver()?
            .apply(self.backing_disk(), id_or_name)
            .map_err(|error| error.within(self.path.display()))
    }

    /// Forgets the snapshot with this id or name.
    pub fn snapshot_delete(&self, id_or_name: &str) -> Result<()> {
        self.check_writable()?;
        self.snapshot_driver()?
            .delete(id_or_name)
            .map_err(|error| error.within(self.path.display()))
    }
}
