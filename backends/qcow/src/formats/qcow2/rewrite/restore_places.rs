//! Moves the active tables and the refcounts back to where they were before the tables were replaced, as QEMU keeps
//! them.
//!
//! While the new tables are in use, the old places are free, and the old L2 tables belong to the snapshot alone, whose
//! COPIED flags mean nothing. So the old tables get their new content, and a second write of the header switches back
//! to them. Programs that compare images find the tables where QEMU would have put them; the image itself does not
//! depend on it.

use crate::error::Result;
use crate::formats::qcow2::check::Check;
use crate::formats::qcow2::check::counts::Counts;
use crate::formats::qcow2::layout::geometry::OFFSET_MASK;
use crate::formats::qcow2::layout::header::Header;
use crate::formats::qcow2::layout::refcount::to_bytes;

/// At most this many bytes of tables are moved back; in large images it is not worth the time.
const MAX_BYTES: u64 = 4 << 20;

/// Where the tables were.
pub(super) struct OldPlaces {
    l1_offset: u64,
    refcount_table_offset: u64,
    refcount_table_clusters: u32,
    /// The refcount table.
    table: Vec<u64>,
}

impl OldPlaces {
    pub(super) fn of(check: &Check<'_>) -> Self {
        Self {
            l1_offset: check.header.l1_offset,
            refcount_table_offset: check.header.refcount_table_offset,
            refcount_table_clusters: check.header.refcount_table_clusters,
            table: check.table.clone(),
        }
    }

    fn header(&self, now: &Header) -> Header {
        Header {
            l1_offset: self.l1_offset,
            refcount_table_offset: self.refcount_table_offset,
            refcount_table_clusters: self.refcount_table_clusters,
            ..now.clone()
        }
    }
}

impl Check<'_> {
    /// Moves the tables back. `l1` are the entries of the active L1 table, all of which a snapshot has, too. If that is
    /// not possible, the new tables stay in use.
    pub(super) fn restore_places(
        &mut self,
        home: &OldPlaces,
        l1: &[u64],
        lost: &mut bool,
    ) -> Result<()> {
        let tables = l1.iter().filter(|entry| **entry & OFFSET_MASK != 0).count()
            + home.table.iter().filter(|entry| **entry != 0).count();
        if tables as u64 * self.geometry.cluster_size() > MAX_BYTES {
            return Ok(());
        }
        let there = home.header(&self.header);
        let header = std::mem::replace(&mut self.header, there);
        let counts = std::mem::take(&mut self.counts);
        for (cluster, _) in counts.used_from(0) {
            self.taken.add(cluster, 1, u64::MAX);
        }
        let gone = self.write_old_places(home, l1, lost);
        if *lost || matches!(gone, Ok(true)) {
            return gone.map(|_| ());
        }
        (self.header, self.counts) = (header, counts);
        Ok(())
    }

    /// Returns whether the header leads there now.
    fn write_old_places(&mut self, home: &OldPlaces, l1: &[u64], lost: &mut bool) -> Result<bool> {
        let entries: Vec<u64> = l1.iter().map(|entry| entry & OFFSET_MASK).collect();
        if !entries.is_empty() {
            self.write(home.l1_offset, &to_bytes(&entries))?;
        }
        self.table.clone_from(&home.table);
        self.counts = Counts::default();
        self.measure()?;
        self.count_everything(false)?;
        if self.result.corruptions > 0 || !self.is_described() {
            return Ok(false);
        }
        for l2 in entries.into_iter().filter(|entry| *entry != 0) {
            self.copy_l2(l2, l2)?;
        }
        let per_block = self.geometry.refcount_block_entries();
        for (index, block) in (0..).zip(&home.table) {
            if *block != 0 {
                self.write_block(*block, index * per_block)?;
            }
        }
        *lost = true;
        self.sync()?;
        self.write_header()?;
        *lost = false;
        Ok(true)
    }

    /// Whether there is a refcount block for each cluster in use.
    fn is_described(&self) -> bool {
        let per_block = self.geometry.refcount_block_entries();
        self.counts.used_from(0).all(|(cluster, _)| {
            let block = self.table.get((cluster / per_block) as usize);
            block.is_some_and(|block| *block != 0)
        })
    }
}
