//! What each cluster of an image is used as. In a hostile one a cluster may be used in two ways at once, counted twice as it should be:
//! no check tells of that, and what the disk holds there changes with the tables.

use std::collections::HashMap;

use crate::places::{cluster_size, word};

const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
const EXTERNAL_DATA: u64 = 1 << 2;
const EXTENDED_L2: u64 = 1 << 4;
const BITMAPS: u64 = 0x2385_2875;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Header,
    RefcountTable,
    RefcountBlock,
    L1,
    L2,
    Data,
    SnapshotTable,
    Bitmaps,
    BitmapTable,
    BitmapData,
}

/// Whether some cluster is used as two kinds of things.
pub fn overlap(bytes: &[u8]) -> bool {
    let mut uses = Uses {
        bytes,
        cluster: cluster_size(bytes),
        kinds: HashMap::new(),
        overlap: false,
    };
    uses.add(0, uses.cluster, Kind::Header);
    uses.refcounts();
    uses.tree(uses.word(40, 8), uses.word(36, 4));
    uses.snapshots();
    uses.bitmaps();
    uses.overlap
}

struct Uses<'a> {
    bytes: &'a [u8],
    cluster: u64,
    kinds: HashMap<u64, Kind>,
    overlap: bool,
}

impl Uses<'_> {
    fn word(&self, at: u64, len: usize) -> u64 {
        usize::try_from(at).map_or(0, |at| match at < self.bytes.len() {
            true => word(self.bytes, at, len),
            false => 0,
        })
    }

    fn add(&mut self, offset: u64, len: u64, kind: Kind) {
        let end = offset.saturating_add(len).min(self.bytes.len() as u64);
        for cluster in offset / self.cluster..end.div_ceil(self.cluster) {
            let known = *self.kinds.entry(cluster).or_insert(kind);
            self.overlap |= known != kind;
        }
    }

    /// Entries of a table: as many as there can be in the file.
    fn entries(&self, table: u64, count: u64, size: u64) -> Vec<u64> {
        let count = count.min(self.bytes.len() as u64 / size);
        (0..count)
            .map(|index| self.word(table.saturating_add(index * size), 8))
            .filter(|entry| *entry != 0)
            .collect()
    }

    fn refcounts(&mut self) {
        let (table, len) = (self.word(48, 8), self.word(56, 4) * self.cluster);
        self.add(table, len, Kind::RefcountTable);
        for block in self.entries(table, len / 8, 8) {
            self.add(block & OFFSET, self.cluster, Kind::RefcountBlock);
        }
    }

    fn tree(&mut self, l1: u64, count: u64) {
        let features = match self.word(4, 4) {
            3.. => self.word(72, 8),
            _ => 0,
        };
        let size = if features & EXTENDED_L2 != 0 { 16 } else { 8 };
        self.add(l1, count.saturating_mul(8), Kind::L1);
        for table in self.entries(l1, count, 8) {
            self.add(table & OFFSET, self.cluster, Kind::L2);
            for entry in self.entries(table & OFFSET, self.cluster / size, size) {
                if entry & COMPRESSED != 0 {
                    self.compressed(entry);
                } else if entry & OFFSET != 0 && features & EXTERNAL_DATA == 0 {
                    self.add(entry & OFFSET, self.cluster, Kind::Data);
                }
            }
        }
    }

    fn compressed(&mut self, entry: u64) {
        let bits = 62 - (self.cluster.trailing_zeros() - 8);
        let offset = entry & ((1 << bits) - 1);
        let sectors = ((entry & (COMPRESSED - 1)) >> bits) + 1;
        let end = (offset & !511) + sectors * 512;
        self.add(offset, end.saturating_sub(offset), Kind::Data);
    }

    fn snapshots(&mut self) {
        let start = self.word(64, 8);
        let mut at = start;
        for _ in 0..self.word(60, 4).min(self.bytes.len() as u64 / 40) {
            self.tree(self.word(at, 8), self.word(at + 8, 4));
            let names = self.word(at + 12, 2) + self.word(at + 14, 2);
            at = (at + 40 + self.word(at + 36, 4) + names).next_multiple_of(8);
        }
        self.add(start, at - start, Kind::SnapshotTable);
    }

    fn bitmaps(&mut self) {
        let mut at = match self.word(4, 4) {
            3.. => self.word(100, 4),
            _ => 72,
        };
        while self.word(at, 4) != 0 && self.word(at, 4) != BITMAPS {
            at += 8 + self.word(at + 4, 4).next_multiple_of(8);
        }
        if self.word(at, 4) != BITMAPS {
            return;
        }
        let (len, directory) = (self.word(at + 16, 8), self.word(at + 24, 8));
        self.add(directory, len, Kind::Bitmaps);
        let end = directory.saturating_add(len).min(self.bytes.len() as u64);
        let mut at = directory;
        while at < end {
            let (table, count) = (self.word(at, 8), self.word(at + 8, 4));
            self.add(table, count * 8, Kind::BitmapTable);
            for entry in self.entries(table, count, 8) {
                if entry & OFFSET != 0 {
                    self.add(entry & OFFSET, self.cluster, Kind::BitmapData);
                }
            }
            let rest = self.word(at + 18, 2) + self.word(at + 20, 4);
            at = (at + 24 + rest).next_multiple_of(8);
        }
    }
}
