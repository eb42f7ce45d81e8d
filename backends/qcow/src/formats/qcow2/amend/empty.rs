//! Emptying an overlay: everything it holds is dropped, so that the backing file shows again.

use crate::error::{Error, Result};
use crate::formats::qcow2::Qcow2;
use crate::formats::qcow2::engine::{ClearMode, Engine};
use crate::formats::qcow2::layout::bitmap::BitmapsExtension;
use crate::formats::qcow2::rewrite::NewTables;

impl Qcow2 {
    /// Drops every cluster of the disk, and gives back the tables that led to them and the free end of the file.
    /// Snapshots keep theirs.
    pub(crate) fn make_empty(&self) -> Result<()> {
        self.note_change(0, self.size())?;
        let _guard = self.ranges.exclusive(0..u64::MAX);
        let end = self.size().next_multiple_of(self.cluster_size);
        self.clear_listed(0..end, ClearMode::Unallocate)?;
        self.commit(&mut self.engine_exclusive(), true)?;
        self.drop_tables_beyond(0)?;
        self.drop_idle_refcounts()?;
        self.move_tables_to_front()
    }

    /// Writes the tables anew where the file begins, if they lie so far behind that they keep it long: those that grew
    /// did so at its end.
    fn move_tables_to_front(&self) -> Result<()> {
        let mut engine = self.engine_exclusive();
        let has_bitmaps = BitmapsExtension::of(&engine.header)?.is_some();
        if self.external || has_bitmaps || !self.snapshot_list().is_empty() {
            return Ok(());
        }
        let l1_bytes = u64::from(engine.header.l1_size) * 8;
        // The header, the L1 table, and at least a refcount table and a block; the old ones are in the way of the new
        // ones.
        let needed = 2 * (3 + engine.geometry().clusters_for(l1_bytes));
        let failed = |error| Error::io("cannot find the size", error);
        if self.storage.len().map_err(failed)? <= needed * self.cluster_size {
            return Ok(());
        }
        let tables = NewTables {
            l1: self.run_locked(&mut engine, Engine::l1_words)?,
            size: engine.header.size,
            snapshots: None,
            fresh_l1: None,
        };
        self.replace_tables(engine, tables)?;
        self.drop_idle_refcounts()
    }
}
