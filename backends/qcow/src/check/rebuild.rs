//! Rebuilding the refcount structure from nothing but what was counted.

use crate::address::ClusterIndex;
use crate::check::Check;
use crate::check::compare::Block;
use crate::engine::to_bytes;
use crate::error::{Error, Result};
use crate::geometry::MAX_REFCOUNT_TABLE_BYTES;
use crate::header::SECTOR;

impl Check<'_> {
    /// Writes a new refcount table and new blocks beyond everything in use, and switches the header to them.
    pub(super) fn rebuild_refcounts(&mut self) -> Result<()> {
        self.tell("Rebuilding refcount structure".to_owned());
        self.forget_old_structure();
        let geometry = self.geometry;
        let (size, per_block) = (geometry.cluster_size(), geometry.refcount_block_entries());
        let first = self
            .counts
            .last()
            .map_or(1, |last| last + 1)
            .max(self.file_clusters);
        // Which blocks there must be: those that describe something, the new structure included.
        let mut blocks = self.described_blocks(per_block);
        let (mut table_clusters, mut end) = (1, first);
        loop {
            let wanted_end = first + table_clusters + blocks.len() as u64;
            let mut more = blocks.clone();
            more.extend((first / per_block)..=((wanted_end.max(end) - 1) / per_block));
            more.sort_unstable();
            more.dedup();
            let entries = more.last().map_or(1, |last| last + 1);
            let clusters = geometry.clusters_for(entries * 8);
            if more == blocks && clusters <= table_clusters {
                break;
            }
            end = wanted_end;
            blocks = more;
            table_clusters = clusters.max(table_clusters);
        }
        if table_clusters * size > MAX_REFCOUNT_TABLE_BYTES.max(size) {
            return Err(Error::corrupt(
                "the image is too large for a refcount table",
            ));
        }
        let total = table_clusters + blocks.len() as u64;
        for cluster in first..first + total {
            self.counts.add(cluster);
        }
        let mut table = vec![0u64; (table_clusters * size / 8) as usize];
        for (index, block) in (0..).zip(&blocks) {
            let offset = geometry
                .offset_of(ClusterIndex(first + table_clusters + index))
                .0;
            self.write_block(offset, block * per_block)?;
            if let Some(entry) = table.get_mut(*block as usize) {
                *entry = offset;
            }
        }
        let table_offset = geometry.offset_of(ClusterIndex(first)).0;
        self.write(table_offset, &to_bytes(&table))?;
        self.sync()?;
        self.header.refcount_table_offset = table_offset;
        self.header.refcount_table_clusters = table_clusters as u32;
        let room = if self.header.backing.is_some() {
            self.header.backing_offset
        } else {
            size
        };
        let mut bytes = self.header.encode_within(room as usize);
        bytes.resize(bytes.len().max(SECTOR.min(room as usize)), 0);
        self.write(0, &bytes)?;
        self.sync()?;
        self.file_clusters = first + total;
        // All that differed is right now.
        self.result.corruptions_fixed += self.result.corruptions;
        self.result.leaks_fixed += self.result.leaks;
        self.result.leaks = 0;
        self.recount_remaining();
        self.result.image_end_offset = (first + total) * size;
        Ok(())
    }

    fn write_block(&mut self, offset: u64, first: u64) -> Result<()> {
        let per_block = self.geometry.refcount_block_entries();
        let mut block = Block::new(
            vec![0u8; self.geometry.cluster_size() as usize],
            self.geometry.refcount_bits(),
        );
        for index in 0..per_block {
            if !block.set(index, self.counts.get(first + index)) {
                return Err(Error::corrupt(format!(
                    "cluster {} is used more often than a refcount can tell",
                    first + index
                )));
            }
        }
        self.write(offset, &block.bytes)
    }

    fn described_blocks(&self, per_block: u64) -> Vec<u64> {
        let mut blocks: Vec<u64> = Vec::new();
        for (cluster, _) in self.counts.used_from(0) {
            if blocks.last() != Some(&(cluster / per_block)) {
                blocks.push(cluster / per_block);
            }
        }
        blocks
    }

    /// The old table and blocks are no longer in use; what else uses their clusters still is.
    fn forget_old_structure(&mut self) {
        self.counts = super::counts::Counts::default();
        self.walked = super::counts::Counts::default();
        (self.trees, self.extra_walks) = (0, 0);
        let kept = std::mem::take(&mut self.result);
        // Counts once more without them; findings were told the first time.
        let counted = self.count_all();
        debug_assert!(counted.is_ok());
        let corruptions = self.result.corruptions;
        self.result = kept;
        self.unfixable = corruptions;
    }

    /// What no rebuilding of refcounts can put right was found again while counting.
    fn recount_remaining(&mut self) {
        self.result.corruptions = self.unfixable;
        self.result.corruptions_fixed =
            self.result.corruptions_fixed.saturating_sub(self.unfixable);
    }
}
