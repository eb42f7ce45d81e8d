//! Comparing refcounts with what was counted.

use std::collections::HashMap;

use crate::error::Result;
use crate::formats::qcow2::check::Check;
use crate::formats::qcow2::check::counts::Stored;
use crate::formats::qcow2::check::structure::BlockAt;
use crate::report::Repair;

/// Counts passed over at a time where all are zero.
const GROUP: u64 = 1024;

/// A refcount block, and the clusters to be looked at that it describes.
struct Described {
    offset: u64,
    first: u64,
    end: u64,
}

/// One refcount block in memory.
pub(in crate::formats::qcow2) struct Block {
    pub(in crate::formats::qcow2) bytes: Vec<u8>,
    bits: u32,
}

impl Block {
    pub(in crate::formats::qcow2) fn new(bytes: Vec<u8>, bits: u32) -> Self {
        Self { bytes, bits }
    }

    pub(in crate::formats::qcow2) fn get(&self, index: u64) -> u64 {
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
    pub(in crate::formats::qcow2) fn set(&mut self, index: u64, value: u64) -> bool {
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
    /// Compares all counts with those in the file, and makes them equal as far as `fix` allows. Counts that were too
    /// low are on the medium before any is lowered.
    pub(in crate::formats::qcow2) fn compare(&mut self, fix: Repair) -> Result<Stored> {
        self.highest = 0;
        let mut stored = Stored::default();
        let table = std::mem::take(&mut self.table);
        let done = self.compare_table(&table, fix, &mut stored);
        self.table = table;
        done.map(|()| stored)
    }

    fn compare_table(&mut self, table: &[u64], fix: Repair, stored: &mut Stored) -> Result<()> {
        let per_block = self.geometry.refcount_block_entries();
        let mut lowered = Vec::new();
        let mut seen = HashMap::new();
        let mut next = 0;
        for (index, entry) in (0u64..).zip(table) {
            let first = index * per_block;
            if first >= self.clusters {
                break;
            }
            next = first.saturating_add(per_block).min(self.clusters);
            match BlockAt::of(*entry, &self.geometry) {
                BlockAt::Nowhere => self.compare_missing(first, next, stored),
                BlockAt::Unreadable(offset) => self.unreadable(index, offset, first, next, stored),
                BlockAt::At(offset) => {
                    let range = Described {
                        offset,
                        first,
                        end: next,
                    };
                    if self.compare_block(&range, fix, stored, &mut seen)? {
                        lowered.push((offset, first));
                    }
                }
            }
        }
        self.compare_missing(next, u64::MAX, stored);
        if fix != Repair::None {
            self.sync()?;
            self.lower(&lowered)?;
        }
        Ok(())
    }

    /// Reads a refcount block; a hole is one of zeroes.
    pub(in crate::formats::qcow2) fn read_block(&mut self, offset: u64) -> Result<Block> {
        let mut bytes = vec![0u8; self.geometry.cluster_size() as usize];
        self.each_piece(offset, bytes.len() as u64, |_, at, piece| {
            let place = bytes.get_mut(at as usize..at as usize + piece.len());
            place.unwrap_or_default().copy_from_slice(piece);
            Ok(())
        })?;
        Ok(Block::new(bytes, self.geometry.refcount_bits()))
    }

    /// The refcount of `cluster` in the file, if it can be read.
    pub(in crate::formats::qcow2) fn refcount_of(
        &mut self,
        cluster: u64,
        stored: &Stored,
    ) -> Option<u64> {
        if cluster < self.clusters {
            return stored.get(&self.counts, cluster);
        }
        // Beyond the end nothing was counted.
        let per_block = self.geometry.refcount_block_entries();
        let entry = usize::try_from(cluster / per_block).ok();
        let entry = entry.and_then(|index| self.table.get(index)).copied();
        let offset = match BlockAt::of(entry.unwrap_or(0), &self.geometry) {
            BlockAt::Nowhere => return Some(0),
            BlockAt::Unreadable(_) => return None,
            BlockAt::At(offset) => offset,
        };
        let bits = self.geometry.refcount_bits();
        let (index, per_byte) = (cluster % per_block, u64::from(8 / bits.min(8)));
        let mut bytes = vec![0; bits.div_ceil(8) as usize];
        let at = index / per_byte * bytes.len() as u64;
        self.read(offset + at, &mut bytes).ok()?;
        Some(Block::new(bytes, bits).get(index % per_byte))
    }

    /// Compares one block, and raises its counts; returns whether some are to be lowered.
    fn compare_block(
        &mut self,
        range: &Described,
        fix: Repair,
        stored: &mut Stored,
        seen: &mut HashMap<u64, u64>,
    ) -> Result<bool> {
        let (first, count) = (range.first, range.end - range.first);
        let whole = count == self.geometry.refcount_block_entries();
        if let Some(leaks) = seen.get(&range.offset)
            && whole
            && self.counts.none_in(first, range.end)
        {
            // A block that an entry before points to, too: a table full of the same block must not keep us for ever.
            self.result.leaks += leaks;
            return Ok(false);
        }
        let mut block = self.read_block(range.offset)?;
        let (mut raised, mut lowers, mut next) = (false, false, 0);
        let mut used = 0;
        while next < count {
            let index = next;
            let cluster = first + index;
            if index.is_multiple_of(GROUP) {
                let end = (index + GROUP).min(count);
                if block.is_zero(index, end) && self.counts.none_in(cluster, first + end) {
                    next = end;
                    continue;
                }
            }
            next += 1;
            let (old, counted) = (block.get(index), self.counts.get(cluster));
            used += u64::from(old != 0);
            if old != 0 || counted != 0 {
                self.highest = cluster;
            }
            if old == counted {
                continue;
            }
            let fixes = self.report_difference(cluster, old, counted, fix);
            raised |= fixes && old < counted && block.set(index, counted);
            lowers |= fixes && old > counted;
            if !fixes && counted > 0 {
                // Only clusters that tables lead to are looked up later.
                stored.differs(cluster, old);
            }
        }
        seen.insert(range.offset, used);
        if raised {
            self.write(range.offset, &block.bytes)?;
        }
        Ok(lowers)
    }

    /// Reports a difference; returns whether it is repaired.
    fn report_difference(&mut self, cluster: u64, stored: u64, counted: u64, fix: Repair) -> bool {
        let leak = stored > counted;
        // Where no count is, there may be no block for it.
        self.rebuild |= stored == 0;
        let fixes = match (stored, leak) {
            (0, _) => false,
            (_, true) => fix != Repair::None,
            (_, false) => fix == Repair::All,
        };
        let word = match (fixes, leak) {
            (true, _) => "Repairing",
            (false, true) => "Leaked",
            (false, false) => "ERROR",
        };
        self.report(format!(
            "{word} cluster {cluster} refcount={stored} reference={counted}"
        ));
        let tally = match (leak, fixes) {
            (true, false) => &mut self.result.leaks,
            (true, true) => &mut self.result.leaks_fixed,
            (false, false) => &mut self.result.corruptions,
            (false, true) => &mut self.result.corruptions_fixed,
        };
        *tally += 1;
        fixes
    }

    /// Clusters that no refcount block describes.
    fn compare_missing(&mut self, first: u64, end: u64, stored: &mut Stored) {
        if self.counts.none_in(first, end) {
            return;
        }
        let used: Vec<(u64, u64)> = self.counts.used_in(first, end).collect();
        for (cluster, counted) in used {
            self.highest = cluster;
            self.report_difference(cluster, 0, counted, Repair::None);
            stored.differs(cluster, 0);
        }
    }

    /// Clusters whose refcount block is where none can be.
    fn unreadable(&mut self, index: u64, offset: u64, first: u64, end: u64, stored: &mut Stored) {
        if !offset.is_multiple_of(self.geometry.cluster_size()) {
            self.report(format!(
                "qcow2: Image is corrupt: Refblock offset {offset:#x} unaligned (reftable index: {index:#x}); \
                 further non-fatal corruption events will be suppressed"
            ));
        }
        self.result.check_errors += end - first;
        for cluster in (first..end).take(super::MAX_MESSAGES) {
            self.report(format!(
                "Can't get refcount for cluster {cluster}: Input/output error"
            ));
        }
        stored.unknown(first, end);
    }

    /// Lowers counts that are too high, in blocks given by their offset and the first cluster they describe.
    fn lower(&mut self, blocks: &[(u64, u64)]) -> Result<()> {
        let end = if self.beyond.is_some() {
            self.clusters
        } else {
            u64::MAX
        };
        for (offset, first) in blocks {
            let mut block = self.read_block(*offset)?;
            let mut changed = false;
            let counted_here = end.saturating_sub(*first);
            for index in 0..self.geometry.refcount_block_entries().min(counted_here) {
                let counted = self.counts.get(first + index);
                changed |= block.get(index) > counted && block.set(index, counted);
            }
            if changed {
                self.write(*offset, &block.bytes)?;
            }
        }
        self.sync()
    }

    /// Counts of clusters beyond the end of the file are no leaks, because nothing takes space there; they would be
    /// once the file grows, so a repair takes them away without a word. If tables lead there, those clusters must not
    /// be given to others.
    pub(in crate::formats::qcow2) fn clear_beyond_end(&mut self) -> Result<()> {
        if self.result.check_errors > 0 || self.rebuild || self.beyond.is_some() {
            return Ok(());
        }
        let per_block = self.geometry.refcount_block_entries();
        let first_block = self.clusters / per_block;
        let blocks: Vec<(u64, u64)> = (0u64..)
            .zip(&self.table)
            .skip(first_block as usize)
            .filter_map(|(index, entry)| match BlockAt::of(*entry, &self.geometry) {
                BlockAt::At(offset) => Some((offset, index * per_block)),
                _ => None,
            })
            .collect();
        self.lower(&blocks)
    }
}
