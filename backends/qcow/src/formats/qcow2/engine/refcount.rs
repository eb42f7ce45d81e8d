//! Refcounts: the refcount table, refcount blocks, and the counts in them.

use crate::error::Error;
use crate::formats::qcow2::engine::{Engine, Stop};
use crate::formats::qcow2::layout::address::{ClusterIndex, HostOffset};
use crate::formats::qcow2::layout::geometry::OFFSET_MASK;
use crate::formats::qcow2::layout::table::Table;

impl Engine {
    fn refcount_table_entries(&self) -> u64 {
        (u64::from(self.header.refcount_table_clusters) << self.geometry.cluster_bits) / 8
    }

    /// The first cluster for which the refcount table has no entry.
    pub(crate) fn refcount_table_end(&self) -> u64 {
        self.refcount_table_entries()
            .saturating_mul(self.geometry.refcount_block_entries())
    }

    pub(super) fn refcount_table_slot(&self, index: u64) -> u64 {
        self.header.refcount_table_offset + index * 8
    }

    pub(super) fn refcount_table_full(&self) -> Stop {
        Stop::RefcountTableFull {
            end: self.refcount_table_end(),
        }
    }

    /// The refcount block that describes `cluster`, if there is one.
    pub(super) fn refcount_block(
        &mut self,
        cluster: ClusterIndex,
    ) -> Result<Option<HostOffset>, Stop> {
        let index = cluster.0 / self.geometry.refcount_block_entries();
        if index >= self.refcount_table_entries() {
            return Ok(None);
        }
        let entry = self.get(self.refcount_table_slot(index))?;
        if entry & !OFFSET_MASK != 0 || !entry.is_multiple_of(self.geometry.cluster_size()) {
            return Err(Error::corrupt(format!(
                "refcount table entry {index} is invalid: {entry:#018x}"
            ))
            .into());
        }
        Ok((entry != 0).then_some(HostOffset(entry)))
    }

    /// The refcount blocks, each with its index in the table.
    pub(crate) fn refcount_blocks(&mut self) -> Result<Vec<(u64, HostOffset)>, Stop> {
        let table = self.refcount_table_words()?;
        let per_block = self.geometry.refcount_block_entries();
        let mut blocks = Vec::new();
        for (index, entry) in (0..).zip(table) {
            if entry != 0
                && let Some(block) = self.refcount_block(ClusterIndex(index * per_block))?
            {
                blocks.push((index, block));
            }
        }
        Ok(blocks)
    }

    /// Whether a refcount block counts no cluster in use other than its own.
    pub(crate) fn is_idle(&mut self, index: u64, block: HostOffset) -> Result<bool, Stop> {
        let itself = self.geometry.cluster_of(block);
        let (own, shift) = self.refcount_place(block, itself);
        let counts_itself = itself.0 / self.geometry.refcount_block_entries() == index;
        let words = self.words(block.0, self.geometry.cluster_size() / 8)?;
        Ok(!(block.0..).step_by(8).zip(words).any(|(at, word)| {
            let of_itself = match counts_itself && at == own {
                true => self.geometry.refcount_max() << shift,
                false => 0,
            };
            word & !of_itself != 0
        }))
    }

    /// Removes a refcount block from the table. If another block counts it, the caller lowers that count once this
    /// change is in the file.
    pub(crate) fn unlist_refcount_block(&mut self, index: u64) -> Result<(), Stop> {
        self.set(Table::Blocks, self.refcount_table_slot(index), 0)
    }

    /// The last cluster in use of those that a refcount block counts.
    pub(crate) fn last_in_use(
        &mut self,
        index: u64,
        block: HostOffset,
    ) -> Result<Option<ClusterIndex>, Stop> {
        let per_block = self.geometry.refcount_block_entries();
        let per_word = 64 / u64::from(self.geometry.refcount_bits());
        let words = self.words(block.0, self.geometry.cluster_size() / 8)?;
        let Some(last) = words.iter().rposition(|word| *word != 0) else {
            return Ok(None);
        };
        let first = index * per_block + last as u64 * per_word;
        for cluster in (first..first + per_word).rev().map(ClusterIndex) {
            if self.refcount(cluster)? != 0 {
                return Ok(Some(cluster));
            }
        }
        Ok(None)
    }

    /// How many clusters a refcount block counts as used.
    pub(crate) fn used_in_block(&mut self, block: HostOffset) -> Result<u64, Stop> {
        let (bits, max) = (self.geometry.refcount_bits(), self.geometry.refcount_max());
        let words = self.words(block.0, self.geometry.cluster_size() / 8)?;
        let in_word = |word: u64| {
            (0..64)
                .step_by(bits as usize)
                .filter(move |at| word >> at & max != 0)
        };
        let counts = words.iter().filter(|word| **word != 0);
        Ok(counts.map(|word| in_word(*word).count() as u64).sum())
    }

    /// Where the count of `cluster` lies in `block`: offset of the word, and shift within it.
    fn refcount_place(&self, block: HostOffset, cluster: ClusterIndex) -> (u64, u32) {
        let bits = u64::from(self.geometry.refcount_bits());
        let bit = (cluster.0 % self.geometry.refcount_block_entries()) * bits;
        let offset = block.0 + bit / 64 * 8;
        let within = bit % 64;
        // Counts of a byte or more are big-endian; smaller ones are packed into a byte from its lowest bits on.
        let shift = if bits >= 8 {
            64 - bits - within
        } else {
            (56 - within / 8 * 8) + within % 8
        };
        (offset, shift as u32)
    }

    /// How often `cluster` is used.
    pub(crate) fn refcount(&mut self, cluster: ClusterIndex) -> Result<u64, Stop> {
        match self.refcount_block(cluster)? {
            None => Ok(0),
            Some(block) => {
                let (offset, shift) = self.refcount_place(block, cluster);
                Ok(self.get(offset)? >> shift & self.geometry.refcount_max())
            }
        }
    }

    /// Sets the count of `cluster`, whose refcount block exists.
    pub(crate) fn set_refcount(&mut self, cluster: ClusterIndex, value: u64) -> Result<(), Stop> {
        let Some(block) = self.refcount_block(cluster)? else {
            return Err(Error::corrupt(format!("cluster {cluster} has no refcount block")).into());
        };
        let max = self.geometry.refcount_max();
        if value > max {
            let message = format!(
                "the refcount of cluster {cluster} would exceed {} bits",
                self.geometry.refcount_bits()
            );
            return Err(Error::invalid(message).into());
        }
        let (offset, shift) = self.refcount_place(block, cluster);
        let word = self.get(offset)?;
        self.set(
            Table::Refcounts,
            offset,
            word & !(max << shift) | value << shift,
        )
    }

    /// Adds one to the refcount.
    pub(crate) fn reference(&mut self, cluster: ClusterIndex) -> Result<u64, Stop> {
        let count = self.refcount(cluster)?;
        if count == 0 {
            return Err(
                Error::corrupt(format!("cluster {cluster} is in use and has refcount 0")).into(),
            );
        }
        let more = count.saturating_add(1);
        self.set_refcount(cluster, more)?;
        Ok(more)
    }

    /// Subtracts one from the refcount, and returns the result.
    pub(crate) fn dereference(&mut self, cluster: ClusterIndex) -> Result<u64, Stop> {
        let Some(left) = self.refcount(cluster)?.checked_sub(1) else {
            return Err(
                Error::corrupt(format!("cluster {cluster} is freed and has refcount 0")).into(),
            );
        };
        self.set_refcount(cluster, left)?;
        if left == 0 {
            self.set_hint(self.hint.min(cluster.0));
            if self
                .tail
                .is_some_and(|tail| self.geometry.cluster_of(HostOffset(tail)) == cluster)
            {
                self.set_tail(None);
            }
        }
        Ok(left)
    }
}
