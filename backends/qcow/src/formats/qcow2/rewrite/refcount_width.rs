//! Refcounts of another width.

use crate::error::{Error, Result};
use crate::formats::qcow2::check::Check;
use crate::formats::qcow2::check::counts::Counts;
use crate::formats::qcow2::check::structure::BlockAt;
use crate::formats::qcow2::layout::header::Header;

impl Check<'_> {
    /// Copies the refcounts, right or wrong, to ones of width 2^`order`, and switches to those. The new ones lie where
    /// neither a refcount nor a table says that something is.
    ///
    /// # Errors
    /// When not all tables can be read, or a count is larger than the new width allows; nothing has changed then.
    pub(crate) fn rewrite_refcounts(mut self, order: u32) -> Result<Header> {
        self.read_snapshot_table()?;
        self.read_refcount_table()?;
        self.count_everything(false)?;
        let mut stored = self.stored_counts()?;
        let old = (self.header.clone(), self.table.clone());
        self.header.refcount_order = order;
        self.geometry = self.header.geometry();
        let max = self.geometry.refcount_max();
        if let Some((cluster, count)) = stored.used_from(0).find(|(_, count)| *count > max) {
            return Err(Error::invalid(format!(
                "Cannot decrease refcount entry width to {} bits: Cluster at offset {:#x} has a refcount of {count}",
                self.geometry.refcount_bits(),
                cluster << self.geometry.cluster_bits
            )));
        }
        std::mem::swap(&mut self.counts, &mut stored);
        self.taken = stored;
        self.rebuild_refcounts()?;
        self.free_structure(&old.0, &old.1)?;
        Ok(self.header)
    }

    /// The refcounts as they are in the file.
    pub(super) fn stored_counts(&mut self) -> Result<Counts> {
        let per_block = self.geometry.refcount_block_entries();
        let mut stored = Counts::default();
        for (index, entry) in (0u64..).zip(self.table.clone()) {
            let first = index * per_block;
            let offset = match BlockAt::of(entry, &self.geometry) {
                BlockAt::Nowhere => continue,
                BlockAt::At(offset) if first < self.clusters => offset,
                // Nothing is there yet that could have a count.
                BlockAt::At(_) => continue,
                BlockAt::Unreadable(_) => {
                    return Err(Error::corrupt(
                        "the refcount table is damaged; check and repair the image first",
                    ));
                }
            };
            let block = self.read_block(offset)?;
            for at in 0..per_block.min(self.clusters - first) {
                stored.add(first + at, block.get(at), u64::MAX);
            }
        }
        Ok(stored)
    }

    /// One use less of all clusters of an old table and its blocks, which nothing leads to any more.
    fn free_structure(&mut self, header: &Header, table: &[u64]) -> Result<()> {
        let bits = self.geometry.cluster_bits;
        let first = header.refcount_table_offset >> bits;
        let blocks = table.iter().filter(|entry| **entry != 0);
        (first..first + u64::from(header.refcount_table_clusters))
            .chain(blocks.map(|entry| entry >> bits))
            .for_each(|cluster| self.counts.remove(cluster));
        let mut new = self.table.clone();
        self.write_blocks(&mut new, 0, self.clusters)?;
        self.sync()
    }
}
