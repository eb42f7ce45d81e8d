//! What each cluster of an image is used as. In a hostile one a cluster may have two uses at once, counted twice as it should be: no
//! check tells of that, and what the disk holds in one place changes with another, or with the tables.

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
    Compressed,
    SnapshotTable,
    Bitmaps,
    BitmapTable,
    BitmapData,
}

/// What a cluster is, and which one of these.
type Use = (Kind, u64);

/// Whether some cluster has two uses. Snapshots share tables and data of the same place; compressed data of many places share a cluster.
pub fn overlap(bytes: &[u8]) -> bool {
    let mut uses = Uses {
        bytes,
        cluster: cluster_size(bytes),
        known: HashMap::new(),
        overlap: false,
    };
    uses.add(0, uses.cluster, (Kind::Header, 0));
    uses.refcounts();
    uses.tree(uses.word(40, 8), uses.word(36, 4), 0);
    uses.snapshots();
    uses.bitmaps();
    uses.overlap
}

struct Uses<'a> {
    bytes: &'a [u8],
    cluster: u64,
    known: HashMap<u64, Use>,
    overlap: bool,
}

impl Uses<'_> {
    fn word(&self, at: u64, len: usize) -> u64 {
        usize::try_from(at).map_or(0, |at| match at < self.bytes.len() {
            true => word(self.bytes, at, len),
            false => 0,
        })
    }

    /// Notes a use; whether some of it is new.
    fn add(&mut self, offset: u64, len: u64, what: Use) -> bool {
        // Nothing that is longer than the file can be used.
        let len = len.min(self.bytes.len() as u64 + self.cluster);
        let end = offset.saturating_add(len);
        let known = self.known.len();
        for cluster in offset / self.cluster..end.div_ceil(self.cluster) {
            let known = *self.known.entry(cluster).or_insert(what);
            self.overlap |= known != what;
        }
        self.known.len() > known
    }

    /// Entries of a table with their indices: as many as there can be in the file, and none once all is known.
    fn entries(&self, table: u64, count: u64, size: u64) -> Vec<(u64, u64)> {
        if self.overlap {
            return Vec::new();
        }
        let there = (self.bytes.len() as u64).saturating_sub(table);
        let count = count.min(there.div_ceil(size));
        (0..count)
            .map(|index| (index, self.word(table.saturating_add(index * size), 8)))
            .filter(|(_, entry)| *entry != 0)
            .collect()
    }

    fn refcounts(&mut self) {
        let (table, len) = (self.word(48, 8), self.word(56, 4) * self.cluster);
        self.add(table, len, (Kind::RefcountTable, 0));
        for (index, block) in self.entries(table, len / 8, 8) {
            self.add(block & OFFSET, self.cluster, (Kind::RefcountBlock, index));
        }
    }

    fn tree(&mut self, l1: u64, count: u64, number: u64) {
        let features = match self.word(4, 4) {
            3.. => self.word(72, 8),
            _ => 0,
        };
        let size = if features & EXTENDED_L2 != 0 { 16 } else { 8 };
        let places = self.cluster / size;
        self.add(l1, count.saturating_mul(8), (Kind::L1, number));
        for (index, table) in self.entries(l1, count, 8) {
            if !self.add(table & OFFSET, self.cluster, (Kind::L2, index)) {
                continue;
            }
            for (place, entry) in self.entries(table & OFFSET, places, size) {
                if entry & COMPRESSED != 0 {
                    self.compressed(entry);
                } else if entry & OFFSET != 0 && features & EXTERNAL_DATA == 0 {
                    let what = (Kind::Data, index * places + place);
                    self.add(entry & OFFSET, self.cluster, what);
                }
            }
        }
    }

    fn compressed(&mut self, entry: u64) {
        let bits = 62 - (self.cluster.trailing_zeros() - 8);
        let offset = entry & ((1 << bits) - 1);
        let sectors = ((entry & (COMPRESSED - 1)) >> bits) + 1;
        let end = (offset & !511) + sectors * 512;
        self.add(offset, end.saturating_sub(offset), (Kind::Compressed, 0));
    }

    fn snapshots(&mut self) {
        let start = self.word(64, 8).min(self.bytes.len() as u64);
        let mut at = start;
        for index in 0..self.word(60, 4).min(self.bytes.len() as u64 / 40) {
            self.tree(self.word(at, 8), self.word(at + 8, 4), 1 + index);
            let names = self.word(at + 12, 2) + self.word(at + 14, 2);
            at = (at + 40 + self.word(at + 36, 4) + names).next_multiple_of(8);
        }
        self.add(start, at - start, (Kind::SnapshotTable, 0));
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
        self.add(directory, len, (Kind::Bitmaps, 0));
        let end = directory.saturating_add(len).min(self.bytes.len() as u64);
        let mut at = directory;
        while at < end {
            let (table, count) = (self.word(at, 8), self.word(at + 8, 4));
            // Each is known by where its entry in the directory is.
            self.add(table, count * 8, (Kind::BitmapTable, at));
            for (index, entry) in self.entries(table, count, 8) {
                if entry & OFFSET != 0 {
                    let what = (Kind::BitmapData, (at << 32) + index);
                    self.add(entry & OFFSET, self.cluster, what);
                }
            }
            let rest = self.word(at + 18, 2) + self.word(at + 20, 4);
            at = (at + 24 + rest).next_multiple_of(8);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An image with data in one more place of its first table, as an entry that is made of the table's offset says.
    fn with_data(mut bytes: Vec<u8>, entry: impl Fn(&Uses<'_>, u64) -> u64) -> Vec<u8> {
        let uses = Uses {
            bytes: &bytes,
            cluster: cluster_size(&bytes),
            known: HashMap::new(),
            overlap: false,
        };
        let table = uses.word(uses.word(40, 8), 8) & OFFSET;
        let entry = entry(&uses, table);
        let at = (table..table + uses.cluster)
            .step_by(8)
            .find(|at| uses.word(*at, 8) == 0)
            .expect("a place without data") as usize;
        bytes[at..at + 8].copy_from_slice(&entry.to_be_bytes());
        bytes
    }

    fn sound() -> Vec<u8> {
        crate::sound::images()[0].bytes.clone()
    }

    #[test]
    fn offsets_and_lengths_may_be_anything() {
        for byte in [0xff, 0x7f, 0x80, 0x01] {
            for version in [2, 3] {
                let mut bytes = vec![byte; 4096];
                bytes[4..8].copy_from_slice(&[0, 0, 0, version]);
                let _ = overlap(&bytes);
                // Beyond the header extensions, so that bitmaps are found.
                bytes[72..80].copy_from_slice(&[0x23, 0x85, 0x28, 0x75, 0, 0, 0, 24]);
                bytes[100..104].copy_from_slice(&[0, 0, 0, 72]);
                let _ = overlap(&bytes);
                // Places at the front, full of entries.
                for at in [40, 48, 64, 96] {
                    bytes[at..at + 8].copy_from_slice(&[0, 0, 0, 0, 0, 0, 2, 0]);
                    let _ = overlap(&bytes);
                }
            }
        }
    }

    #[test]
    fn data_of_two_places_is_seen() {
        let two = with_data(sound(), |uses, table| {
            let entries = uses.entries(table, uses.cluster / 8, 8);
            let data = entries.iter().find(|(_, entry)| entry & COMPRESSED == 0);
            data.expect("data").1
        });
        assert!(overlap(&two));
    }

    #[test]
    fn data_of_two_places_behind_the_end_is_seen() {
        let end = sound().len() as u64;
        let behind = |uses: &Uses<'_>, _| end.next_multiple_of(uses.cluster) | 1 << 63;
        let one = with_data(sound(), behind);
        assert!(!overlap(&one));
        assert!(overlap(&with_data(one, behind)));
    }

    #[test]
    fn data_that_counts_references_is_seen() {
        let count = with_data(sound(), |uses, _| uses.word(uses.word(48, 8), 8) | 1 << 63);
        assert!(overlap(&count));
    }
}
