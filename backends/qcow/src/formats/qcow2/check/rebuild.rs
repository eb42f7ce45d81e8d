//! Rebuilding the refcount structure from nothing but what was counted.

use crate::error::{Error, Result};
use crate::formats::qcow2::check::Check;
use crate::formats::qcow2::check::compare::Block;
use crate::formats::qcow2::check::counts::Stored;
use crate::formats::qcow2::layout::address::ClusterIndex;
use crate::formats::qcow2::layout::geometry::MAX_REFCOUNT_TABLE_BYTES;
use crate::formats::qcow2::layout::refcount::to_bytes;
use crate::report::Repair;

impl Check<'_> {
    /// Rebuilds the structure, counts once more, and frees what the old one took.
    pub(in crate::formats::qcow2) fn rebuild_and_recount(&mut self) -> Result<Stored> {
        let before = self.result.tallies();
        self.report("Rebuilding refcount structure".to_owned());
        // Also where an entry that is damaged led: until the header is written, the old structure is the one there is.
        let bits = self.geometry.cluster_bits;
        for cluster in self.table.iter().map(|entry| entry >> bits) {
            if cluster < self.clusters {
                self.taken.add(cluster, 1, u64::MAX);
            }
        }
        self.rebuild_refcounts()?;
        (self.result.corruptions, self.result.leaks) = (0, 0);
        self.recount()?;
        let counted = self.result.tallies();
        let stored = self.compare(Repair::Leaks)?;
        if self.rebuild {
            self.report("ERROR rebuilt refcount structure is still broken".to_owned());
        }
        let fresh_leaks = self.result.leaks;
        self.result.restore(counted);
        let fixed = |old: u64, new: u64| old.saturating_sub(new);
        self.result.corruptions_fixed += fixed(before.corruptions, self.result.corruptions);
        self.result.leaks_fixed += fixed(before.leaks, self.result.leaks);
        self.result.leaks += fresh_leaks;
        Ok(stored)
    }

    /// Counts all there is after the header has changed.
    pub(in crate::formats::qcow2) fn recount(&mut self) -> Result<()> {
        self.rebuild = false;
        self.counts = super::counts::Counts::default();
        self.measure()?;
        (
            self.result.allocated_clusters,
            self.result.fragmented_clusters,
            self.result.compressed_clusters,
        ) = (0, 0, 0);
        self.count_everything(false)
    }

    /// Writes a new refcount table and new blocks to clusters that nothing uses, the old structure included, and
    /// switches the header to them. What the old one used is leaked then.
    pub(in crate::formats::qcow2) fn rebuild_refcounts(&mut self) -> Result<()> {
        self.write_refcounts()?;
        self.sync()?;
        self.write_header()
    }

    /// Writes a new refcount table and new blocks to clusters that nothing uses; to be found by the header, which is
    /// not written.
    pub(in crate::formats::qcow2) fn write_refcounts(&mut self) -> Result<()> {
        let geometry = self.geometry;
        let size = geometry.cluster_size();
        // At least one cluster, even if nothing is counted: an image has a table.
        let mut table = vec![0; (size / 8) as usize];
        self.write_blocks(&mut table, 0, self.clusters)?;
        let (first, clusters) = loop {
            let clusters = geometry.clusters_for(table.len() as u64 * 8);
            if clusters * size > MAX_REFCOUNT_TABLE_BYTES.max(size) {
                return Err(Error::corrupt(
                    "the image is too large for a refcount table",
                ));
            }
            let (first, _) = self.take_free(clusters, 0);
            if !self.write_blocks(&mut table, first, first + clusters)? {
                break (first, clusters);
            }
        };
        let offset = geometry.offset_of(ClusterIndex(first)).0;
        self.write(offset, &to_bytes(&table))?;
        self.header.refcount_table_offset = offset;
        self.header.refcount_table_clusters = clusters as u32;
        self.table = table;
        Ok(())
    }

    /// Takes the first `count` clusters in a row from `from` on that nothing uses; returns the first of them, and the
    /// first that was free.
    pub(in crate::formats::qcow2) fn take_free(&mut self, count: u64, from: u64) -> (u64, u64) {
        let (mut start, mut gap) = (from, None);
        let mut cluster = from;
        while cluster < start + count {
            if self.counts.get(cluster) == 0 && self.taken.get(cluster) == 0 {
                gap.get_or_insert(cluster);
            } else {
                start = cluster + 1;
            }
            cluster += 1;
        }
        for cluster in start..start + count {
            self.counts.add(cluster, 1, self.geometry.refcount_max());
        }
        self.clusters = self.clusters.max(start + count);
        (start, gap.unwrap_or(start))
    }

    /// Writes the blocks that describe the used clusters of a range, and gives a place to those that have none in
    /// `table`; returns whether the table has grown.
    pub(in crate::formats::qcow2) fn write_blocks(
        &mut self,
        table: &mut Vec<u64>,
        first: u64,
        end: u64,
    ) -> Result<bool> {
        let geometry = self.geometry;
        let per_block = geometry.refcount_block_entries();
        let per_cluster = geometry.cluster_size() / 8;
        let (mut next, mut end, mut free, mut grown) = (first, end, 0, false);
        loop {
            let used = self.counts.used_from(next).next();
            let Some((cluster, _)) = used.filter(|(cluster, _)| *cluster < end) else {
                return Ok(grown);
            };
            let index = cluster / per_block;
            let known = table.get(index as usize).copied().unwrap_or(0);
            let offset = if known != 0 {
                known
            } else {
                // Not in a cluster that a block describes which is written already.
                let (block, gap) = self.take_free(1, free.max(index * per_block));
                (free, end) = (gap, end.max(block + 1));
                if table.len() as u64 <= index {
                    table.resize((index + 1).next_multiple_of(per_cluster) as usize, 0);
                    grown = true;
                }
                let offset = geometry.offset_of(ClusterIndex(block)).0;
                if let Some(entry) = table.get_mut(index as usize) {
                    *entry = offset;
                }
                offset
            };
            self.write_block(offset, index * per_block)?;
            next = (index + 1) * per_block;
        }
    }

    pub(in crate::formats::qcow2) fn write_block(&mut self, offset: u64, first: u64) -> Result<()> {
        let per_block = self.geometry.refcount_block_entries();
        let mut block = Block::new(
            vec![0u8; self.geometry.cluster_size() as usize],
            self.geometry.refcount_bits(),
        );
        let used: Vec<(u64, u64)> = self.counts.used_in(first, first + per_block).collect();
        for (cluster, count) in used {
            if !block.set(cluster - first, count) {
                return Err(Error::corrupt(format!(
                    "cluster {cluster} is used more often than a refcount can count"
                )));
            }
        }
        self.write(offset, &block.bytes)
    }
}
