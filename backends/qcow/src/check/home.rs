//! The way back after an exchange: the active tables and the refcounts where they were, as QEMU keeps them.
//!
//! A snapshot need not move what it only shares. While other tables are in force, the old places are free, and the L2 tables are the
//! snapshot's alone, whose flags say nothing: so they are made what they will have to be, and a second write of the header goes back to
//! them. Programs that look into images find the tables where QEMU would have them; for the image itself nothing depends on it.

use crate::check::Check;
use crate::check::counts::Counts;
use crate::engine::to_bytes;
use crate::error::Result;
use crate::geometry::OFFSET_MASK;
use crate::header::Header;

/// So many bytes of tables are moved back; in large images it is not worth the time.
const MAX_BYTES: u64 = 4 << 20;

/// Where the tables were.
pub(super) struct Home {
    l1_offset: u64,
    refcount_table_offset: u64,
    refcount_table_clusters: u32,
    /// The refcount table.
    table: Vec<u64>,
}

impl Home {
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
    /// Goes back, with these entries of the active L1 table, all of them tables that a snapshot has, too. If that cannot be, what the
    /// exchange has put in force stays.
    pub(super) fn go_home(&mut self, home: &Home, l1: &[u64], lost: &mut bool) -> Result<()> {
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
        let gone = self.write_home(home, l1, lost);
        if *lost || matches!(gone, Ok(true)) {
            return gone.map(|_| ());
        }
        (self.header, self.counts) = (header, counts);
        Ok(())
    }

    /// Returns whether the header leads there now.
    fn write_home(&mut self, home: &Home, l1: &[u64], lost: &mut bool) -> Result<bool> {
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
