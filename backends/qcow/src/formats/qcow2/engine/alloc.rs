//! Finding free clusters.

use crate::error::Error;
use crate::formats::qcow2::engine::{Engine, Stop};
use crate::formats::qcow2::layout::address::{ClusterIndex, HostOffset};
use crate::formats::qcow2::layout::geometry::HOST_LIMIT;
use crate::formats::qcow2::layout::l2::compressed_limit;
use crate::formats::qcow2::layout::table::Table;

impl Engine {
    /// Allocates the first free clusters: up to `max`, as many as are contiguous.
    pub(crate) fn allocate(&mut self, max: u64) -> Result<(HostOffset, u64), Stop> {
        let start = self.find_free(self.hint)?;
        let mut count = 0;
        while count < max {
            let cluster = ClusterIndex(start.0 + count);
            if count > 0
                && (self.refcount_block(cluster)?.is_none() || self.refcount(cluster)? != 0)
            {
                break;
            }
            self.take(cluster)?;
            count += 1;
        }
        self.set_hint(start.0 + count);
        Ok((self.geometry.offset_of(start), count))
    }

    /// Allocates exactly `count` contiguous clusters, which the caller writes without the cache of pages.
    pub(crate) fn allocate_exactly(&mut self, count: u64) -> Result<HostOffset, Stop> {
        let first = self.find_free(self.hint)?;
        self.set_hint(first.0);
        let mut start = first;
        while let Some(used) = self.first_used(start, count)? {
            start = self.find_free(used.0 + 1)?;
        }
        self.describe_from_beyond(start, count)?;
        for index in 0..count {
            self.take(ClusterIndex(start.0 + index))?;
        }
        if start == first {
            self.set_hint(start.0 + count);
        }
        let host = self.geometry.offset_of(start);
        // The caller does not write them through the cache, whose copy of the former content would be stale.
        self.pages
            .forget(host.0, count * self.geometry.cluster_size());
        Ok(host)
    }

    /// If the next `count` free clusters are contiguous, creates the refcount blocks that they lack, and places those
    /// behind them, so that one allocation can take them all. Otherwise does nothing.
    pub(super) fn describe_next(&mut self, count: u64) -> Result<(), Stop> {
        let Some(start) = self.next_free(self.hint)? else {
            return Ok(());
        };
        if self.first_used(start, count)?.is_none() {
            self.describe_from_beyond(start, count)?;
        }
        Ok(())
    }

    /// Creates some of the refcount blocks that the next `count` free clusters lack, and places them in the first of
    /// these clusters. Returns whether none was missing.
    pub(crate) fn describe_ahead(&mut self, count: u64) -> Result<bool, Stop> {
        const AT_A_TIME: u64 = 64;
        self.check_usable()?;
        let per_block = self.geometry.refcount_block_entries();
        let first = self.find_free(self.hint)?;
        let (mut next, mut made) = (first, 0);
        for index in first.0 / per_block..(first.0 + count).div_ceil(per_block) {
            let cluster = ClusterIndex(index * per_block);
            if cluster.0 >= self.refcount_table_end() {
                return Err(self.refcount_table_full());
            }
            if self.refcount_block(cluster)?.is_some() {
                continue;
            }
            if made == AT_A_TIME {
                return Ok(false);
            }
            self.create_refcount_block_at(cluster, next)?;
            made += 1;
            next = self.find_free(next.0 + 1)?;
        }
        self.set_hint(next.0);
        Ok(made == 0)
    }

    /// Whether refcount blocks are missing for any of the `count` clusters from the next free one on.
    pub(super) fn next_lack_description(&mut self, count: u64) -> Result<bool, Stop> {
        let per_block = self.geometry.refcount_block_entries();
        let Some(start) = self.next_free(self.hint)? else {
            return Ok(false);
        };
        for index in start.0 / per_block..(start.0 + count).div_ceil(per_block) {
            if self
                .refcount_block(ClusterIndex(index * per_block))?
                .is_none()
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The first free cluster at or after `from`, whether it has a refcount block or not. `None` if the refcount table
    /// has no entry for it.
    fn next_free(&mut self, from: u64) -> Result<Option<ClusterIndex>, Stop> {
        let per_block = self.geometry.refcount_block_entries();
        let mut cluster = ClusterIndex(from.max(1));
        while cluster.0 < self.refcount_table_end() {
            let Some(block) = self.refcount_block(cluster)? else {
                return Ok(Some(cluster));
            };
            let end = (cluster.0 / per_block + 1) * per_block;
            if let Some(found) = self.scan_block(block, cluster, end)? {
                return Ok(Some(found));
            }
            cluster.0 = end;
        }
        Ok(None)
    }

    /// The first of these `count` clusters that is in use. A cluster without a refcount block is free.
    fn first_used(
        &mut self,
        start: ClusterIndex,
        count: u64,
    ) -> Result<Option<ClusterIndex>, Stop> {
        let per_block = self.geometry.refcount_block_entries();
        let end = start.0 + count;
        if end > self.refcount_table_end() {
            return Err(self.refcount_table_full());
        }
        let mut cluster = start;
        while cluster.0 < end {
            if self.refcount_block(cluster)?.is_none() {
                cluster.0 = (cluster.0 / per_block + 1) * per_block;
                continue;
            }
            if self.refcount(cluster)? != 0 {
                return Ok(Some(cluster));
            }
            cluster.0 += 1;
        }
        Ok(None)
    }

    /// Creates the refcount blocks for these clusters, and places them behind the clusters. Placed among them, as
    /// usual, they would limit a contiguous run to the clusters of one block.
    fn describe_from_beyond(&mut self, start: ClusterIndex, count: u64) -> Result<(), Stop> {
        let per_block = self.geometry.refcount_block_entries();
        let mut beyond = start.0 + count;
        for index in start.0 / per_block..(start.0 + count).div_ceil(per_block) {
            let cluster = ClusterIndex(index * per_block);
            if self.refcount_block(cluster)?.is_some() {
                continue;
            }
            // The place may lack a refcount block, too. Then that is created here, and it may be the one wanted.
            let at = self.find_free(beyond)?;
            beyond = at.0;
            if self.refcount_block(cluster)?.is_none() {
                self.create_refcount_block_at(cluster, at)?;
                beyond += 1;
            }
        }
        Ok(())
    }

    fn take(&mut self, cluster: ClusterIndex) -> Result<(), Stop> {
        if self.overlap.contains(cluster) {
            return Err(Error::corrupt(format!(
                "cluster {cluster} holds metadata and has refcount 0"
            ))
            .into());
        }
        self.set_refcount(cluster, 1)
    }

    /// The first free cluster at or after `from`. Creates each refcount block that is missing on the way, in the first
    /// of the clusters that it counts.
    fn find_free(&mut self, from: u64) -> Result<ClusterIndex, Stop> {
        let per_block = self.geometry.refcount_block_entries();
        let mut cluster = ClusterIndex(from.max(1));
        loop {
            if cluster.0 >= self.refcount_table_end() {
                return Err(self.refcount_table_full());
            }
            if cluster.0 >= HOST_LIMIT >> self.geometry.cluster_bits {
                return Err(Error::invalid("the image file has reached its largest size").into());
            }
            let Some(block) = self.refcount_block(cluster)? else {
                self.create_refcount_block(cluster)?;
                cluster.0 += 1;
                continue;
            };
            let end = (cluster.0 / per_block + 1) * per_block;
            if let Some(found) = self.scan_block(block, cluster, end)? {
                return Ok(found);
            }
            cluster.0 = end;
        }
    }

    /// The first cluster with refcount 0 from `from` to `end`, all of which `block` counts.
    fn scan_block(
        &mut self,
        block: HostOffset,
        from: ClusterIndex,
        end: u64,
    ) -> Result<Option<ClusterIndex>, Stop> {
        let bits = u64::from(self.geometry.refcount_bits());
        let per_word = 64 / bits;
        let per_block = self.geometry.refcount_block_entries();
        let mut cluster = from.0;
        while cluster < end {
            if cluster.is_multiple_of(per_word) {
                // A word without a zero count is skipped as a whole.
                let word = self.get(block.0 + (cluster % per_block) / per_word * 8)?;
                if !has_zero_count(word, bits as u32) {
                    cluster += per_word;
                    continue;
                }
            }
            if self.refcount(ClusterIndex(cluster))? == 0 {
                return Ok(Some(ClusterIndex(cluster)));
            }
            cluster += 1;
        }
        Ok(None)
    }

    /// Creates the refcount block that counts `cluster`, in that cluster.
    fn create_refcount_block(&mut self, cluster: ClusterIndex) -> Result<(), Stop> {
        self.create_refcount_block_at(cluster, cluster)
    }

    /// Creates the refcount block that counts `described` and its neighbours, in the free cluster `cluster`.
    fn create_refcount_block_at(
        &mut self,
        described: ClusterIndex,
        cluster: ClusterIndex,
    ) -> Result<(), Stop> {
        let offset = self.geometry.offset_of(cluster);
        if self.overlap.contains(cluster) {
            return Err(Error::corrupt(format!(
                "cluster {cluster} holds metadata and has no refcount"
            ))
            .into());
        }
        self.check_space(offset)?;
        let cluster_size = self.geometry.cluster_size();
        self.pages
            .create(Table::Refcounts, offset.0, cluster_size, &mut self.undo);
        let index = described.0 / self.geometry.refcount_block_entries();
        self.set(Table::Blocks, self.refcount_table_slot(index), offset.0)?;
        self.mark_metadata(cluster);
        self.set_refcount(cluster, 1)
    }

    /// Allocates `len` bytes, at most the size of a cluster, for a compressed cluster: behind the last compressed one
    /// where there is room.
    pub(crate) fn allocate_bytes(&mut self, len: u64) -> Result<HostOffset, Stop> {
        let cluster_size = self.geometry.cluster_size();
        let mut begin = None;
        if let Some(tail) = self.tail {
            let cluster = self.geometry.cluster_of(HostOffset(tail));
            if self.refcount(cluster)? < self.geometry.refcount_max() {
                begin = Some(tail);
            }
        }
        let room = begin.map_or(0, |tail| cluster_size - tail % cluster_size);
        let host = if room >= len {
            begin.unwrap_or(0)
        } else {
            let (fresh, _) = self.allocate(1)?;
            match begin {
                // The new cluster is next to the old one, so the data may span both.
                Some(tail) if fresh.0 == tail + room => tail,
                _ => {
                    begin = None;
                    fresh.0
                }
            }
        };
        if begin.is_some() {
            self.reference(self.geometry.cluster_of(HostOffset(host)))?;
        }
        let end = host + len;
        if end > compressed_limit(&self.geometry) {
            return Err(
                Error::invalid("the image file is too large for compressed clusters").into(),
            );
        }
        self.set_tail((!end.is_multiple_of(cluster_size)).then_some(end));
        Ok(HostOffset(host))
    }

    /// Frees what [`Engine::allocate_bytes`] returned, if no table refers to it.
    pub(crate) fn release_bytes(&mut self, host: HostOffset, len: u64) -> Result<(), Stop> {
        let first = self.geometry.cluster_of(host);
        let last = self.geometry.cluster_of(HostOffset(host.0 + len - 1));
        self.release(self.geometry.offset_of(first), last.0 - first.0 + 1)
    }

    /// Frees allocated clusters that no table refers to.
    pub(crate) fn release(&mut self, host: HostOffset, clusters: u64) -> Result<(), Stop> {
        for index in 0..clusters {
            self.dereference(ClusterIndex(self.geometry.cluster_of(host).0 + index))?;
        }
        Ok(())
    }
}

/// Whether one of the counts of `bits` bits in `word` is 0.
fn has_zero_count(word: u64, bits: u32) -> bool {
    if bits == 64 {
        return word == 0;
    }
    let ones = u64::MAX / ((1 << bits) - 1);
    let tops = ones << (bits - 1);
    word.wrapping_sub(ones) & !word & tops != 0
}

#[cfg(test)]
mod tests {
    use super::has_zero_count;

    #[test]
    fn zero_counts_are_found_at_every_width() {
        for bits in [1u32, 2, 4, 8, 16, 32] {
            let ones = u64::MAX / ((1 << bits) - 1);
            assert!(!has_zero_count(ones, bits));
            assert!(!has_zero_count(u64::MAX, bits));
            for index in 0..64 / bits {
                let mask = ((1u64 << bits) - 1) << (index * bits);
                assert!(has_zero_count(!mask, bits), "{bits} bits, count {index}");
            }
        }
        assert!(has_zero_count(0, 64) && !has_zero_count(1, 64));
    }
}
