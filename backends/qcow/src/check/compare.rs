//! Comparing refcounts with what was counted.

use std::collections::{BTreeMap, HashSet};

use crate::check::Check;
use crate::check::counts::Stored;
use crate::error::Result;
use crate::geometry::OFFSET_MASK;
use crate::report::Repair;

/// Counts passed over at a time where all are zero.
const GROUP: u64 = 1024;

/// One refcount block in memory.
pub(super) struct Block {
    pub(super) bytes: Vec<u8>,
    bits: u32,
}

impl Block {
    pub(super) fn new(bytes: Vec<u8>, bits: u32) -> Self {
        Self { bytes, bits }
    }

    pub(super) fn get(&self, index: u64) -> u64 {
        if self.bits == 16 {
            // The usual width.
            let at = (index * 2) as usize;
            let count = self
                .bytes
                .get(at..)
                .and_then(|rest| rest.first_chunk::<2>());
            return count.map_or(0, |count| u64::from(u16::from_be_bytes(*count)));
        }
        let bit = index * u64::from(self.bits);
        let at = (bit / 8) as usize;
        if self.bits < 8 {
            let byte = self.bytes.get(at).copied().unwrap_or(0);
            return u64::from(byte >> (bit % 8)) & ((1 << self.bits) - 1);
        }
        let width = self.bits as usize / 8;
        self.bytes
            .get(at..at + width)
            .unwrap_or_default()
            .iter()
            .fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    /// Whether all counts from `start`, which is a multiple of 8, to `end` are zero.
    fn is_zero(&self, start: u64, end: u64) -> bool {
        let bits = u64::from(self.bits);
        let (first, last) = (
            (start * bits / 8) as usize,
            (end * bits).div_ceil(8) as usize,
        );
        let bytes = self.bytes.get(first..last).unwrap_or_default();
        bytes.iter().all(|byte| *byte == 0)
    }

    /// Returns whether the count fits.
    pub(super) fn set(&mut self, index: u64, value: u64) -> bool {
        if self.bits < 64 && value >> self.bits != 0 {
            return false;
        }
        let bit = index * u64::from(self.bits);
        let at = (bit / 8) as usize;
        if self.bits < 8 {
            let mask = (((1u16 << self.bits) - 1) as u8) << (bit % 8);
            if let Some(byte) = self.bytes.get_mut(at) {
                *byte = *byte & !mask | (value as u8) << (bit % 8);
            }
            return true;
        }
        let width = self.bits as usize / 8;
        if let Some(place) = self.bytes.get_mut(at..at + width) {
            place.copy_from_slice(value.to_be_bytes().get(8 - width..).unwrap_or_default());
        }
        true
    }
}

impl Check<'_> {
    /// The refcount table; empty if it cannot be had.
    pub(super) fn read_refcount_table(&mut self) -> Vec<u64> {
        if let Err(error) = self.header.check_refcount_table() {
            self.corruption(format!("ERROR: {error}"));
            self.rebuild = true;
            return Vec::new();
        }
        let entries =
            (u64::from(self.header.refcount_table_clusters) << self.header.cluster_bits) / 8;
        let table = self
            .read_words(self.header.refcount_table_offset, entries)
            .unwrap_or_default();
        self.rebuild |= table.is_empty();
        table
    }

    /// Counts the refcount table and its blocks.
    pub(super) fn count_refcount_structure(&mut self, table: &[u64]) -> Result<()> {
        if table.is_empty() {
            return Ok(());
        }
        if !self.count(
            "refcount table",
            self.header.refcount_table_offset,
            table.len() as u64 * 8,
        ) {
            self.rebuild = true;
        }
        for (index, entry) in (0..).zip(table) {
            let index: u64 = index;
            let entry = *entry;
            if entry == 0 {
                continue;
            }
            let offset = entry & OFFSET_MASK;
            if entry != offset || !offset.is_multiple_of(self.geometry.cluster_size()) {
                self.corruption(format!("ERROR refcount block {index} is not cluster aligned; refcount table entry corrupted"));
                self.rebuild = true;
                continue;
            }
            if offset >> self.geometry.cluster_bits >= self.file_clusters {
                self.corruption(format!("ERROR refcount block {index} is outside image"));
                self.rebuild = true;
                continue;
            }
            let cluster = offset >> self.geometry.cluster_bits;
            self.counts.add(cluster);
            if self.counts.get(cluster) != 1 {
                self.tell(format!(
                    "ERROR refcount block {index} refcount={}",
                    self.counts.get(cluster)
                ));
                self.result.corruptions += 1;
                self.rebuild = true;
            }
        }
        Ok(())
    }

    /// Compares all counts; raises those that are too low, if that is wanted. Those too high come last.
    pub(super) fn compare(&mut self, table: &[u64]) -> Result<Stored> {
        let per_block = self.geometry.refcount_block_entries();
        let mut differing = BTreeMap::new();
        let mut visited = HashSet::new();
        for (index, entry) in (0u64..).zip(table) {
            let (first, end) = (index * per_block, (index + 1).saturating_mul(per_block));
            let offset = entry & OFFSET_MASK;
            let outside = offset >> self.geometry.cluster_bits >= self.file_clusters;
            // A block that an entry before points to, too, describes that one's clusters: a table full of the same
            // block must not keep us for ever.
            if offset == 0 || outside || !visited.insert(offset) {
                if !self.counts.none_in(first, end) {
                    self.compare_missing(first, end, &mut differing);
                }
                continue;
            }
            self.compare_block(offset, first, &mut differing)?;
        }
        let covered = table.len() as u64 * per_block;
        if !self.counts.none_in(covered, u64::MAX) {
            self.compare_missing(covered, u64::MAX, &mut differing);
        }
        let last = self
            .counts
            .last()
            .unwrap_or(0)
            .max(self.result.image_end_offset >> self.geometry.cluster_bits);
        self.result.image_end_offset = (last + 1) << self.geometry.cluster_bits;
        Ok(Stored::Differing(differing))
    }

    fn compare_block(
        &mut self,
        offset: u64,
        first: u64,
        differing: &mut BTreeMap<u64, u64>,
    ) -> Result<()> {
        let mut bytes = vec![0u8; self.geometry.cluster_size() as usize];
        let len = bytes.len();
        if let Err(error) = self.storage.read(offset, &mut &mut bytes[..], 0, len) {
            self.result.check_errors += 1;
            self.tell(format!(
                "ERROR: cannot read the refcount block at {offset:#x}: {error}"
            ));
            return Ok(());
        }
        let mut block = Block::new(bytes, self.geometry.refcount_bits());
        let mut changed = false;
        let (per_block, mut next) = (self.geometry.refcount_block_entries(), 0);
        while next < per_block {
            let index = next;
            let cluster = first + index;
            if index.is_multiple_of(GROUP) {
                let end = (index + GROUP).min(per_block);
                if block.is_zero(index, end) && self.counts.none_in(cluster, first + end) {
                    next = end;
                    continue;
                }
            }
            next += 1;
            let (stored, counted) = (block.get(index), self.counts.get(cluster));
            if counted == 0 && cluster >= self.file_clusters && self.repair == Repair::None {
                // Beyond the end of the file nothing takes space yet that could be leaked.
                continue;
            }
            if stored != 0 {
                let end = cluster << self.geometry.cluster_bits;
                self.result.image_end_offset = self.result.image_end_offset.max(end);
            }
            if stored == counted {
                continue;
            }
            let fix = stored < counted
                && self.repair == Repair::All
                && !self.rebuild
                && block.set(index, counted);
            self.report_difference(cluster, stored, counted, fix);
            if fix {
                changed = true;
            } else if counted > 0 {
                // Nobody asks for the count of what no table leads to.
                differing.insert(cluster, stored);
            }
        }
        if changed {
            self.write(offset, &block.bytes)?;
        }
        Ok(())
    }

    fn report_difference(&mut self, cluster: u64, stored: u64, counted: u64, fixed: bool) {
        let leak = stored > counted;
        let repairs = if leak {
            self.repair != Repair::None
        } else {
            self.repair == Repair::All
        };
        let word = match (repairs, leak) {
            (true, _) => "Repairing",
            (false, true) => "Leaked",
            (false, false) => "ERROR",
        };
        self.tell(format!(
            "{word} cluster {cluster} refcount={stored} reference={counted}"
        ));
        match (leak, fixed) {
            // Counted as fixed when it is.
            (true, _) => self.result.leaks += 1,
            (false, true) => self.result.corruptions_fixed += 1,
            (false, false) => self.result.corruptions += 1,
        }
    }

    /// Clusters in use that no refcount block describes.
    fn compare_missing(&mut self, first: u64, end: u64, differing: &mut BTreeMap<u64, u64>) {
        let used: Vec<(u64, u64)> = self
            .counts
            .used_from(first)
            .take_while(|(cluster, _)| *cluster < end)
            .collect();
        for (cluster, counted) in used {
            self.report_difference(cluster, 0, counted, false);
            differing.insert(cluster, 0);
        }
        self.rebuild = true;
    }

    /// Lowers counts that are too high.
    pub(super) fn lower_leaks(&mut self, stored: &mut Stored) -> Result<()> {
        if self.result.leaks == 0 {
            return Ok(());
        }
        let per_block = self.geometry.refcount_block_entries();
        for (index, entry) in (0u64..).zip(self.read_refcount_table()) {
            let offset = entry & OFFSET_MASK;
            if offset == 0
                || entry != offset
                || offset >> self.geometry.cluster_bits >= self.file_clusters
                || self.counts.get(offset >> self.geometry.cluster_bits) != 1
            {
                // Nor a block that has another use: its counts are not those of these clusters alone.
                continue;
            }
            let mut bytes = vec![0u8; self.geometry.cluster_size() as usize];
            let len = bytes.len();
            if self
                .storage
                .read(offset, &mut &mut bytes[..], 0, len)
                .is_err()
            {
                continue;
            }
            let mut block = Block::new(bytes, self.geometry.refcount_bits());
            let mut lowered = 0;
            for at in 0..per_block {
                let counted = self.counts.get(index * per_block + at);
                if block.get(at) > counted && block.set(at, counted) {
                    stored.put_right(index * per_block + at);
                    lowered += 1;
                }
            }
            if lowered > 0 {
                self.write(offset, &block.bytes)?;
                self.result.leaks_fixed += lowered;
                self.result.leaks = self.result.leaks.saturating_sub(lowered);
            }
        }
        self.sync()
    }
}
