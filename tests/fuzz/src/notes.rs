//! A journal that somebody forged, beside a sound image that waits for what is in it.

use std::sync::Arc;

use qcow::{Format, Image, Journal, OpenOptions, Storage};

use crate::memory::Memory;

const PARTS_AT: usize = 4096;
const PART: usize = 512 << 10;
const RECORD: usize = 32;

/// The image and its journal.
pub struct Pending {
    pub image: Memory,
    pub journal: Memory,
}

impl Pending {
    /// Of an image that a process served that was killed. `None` if it has no journal.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let pending = Self {
            image: Memory::new(bytes),
            journal: Memory::default(),
        };
        let image = pending.open(true).ok().filter(Image::has_journal)?;
        let killed = Self {
            image: pending.image.copy(),
            journal: pending.journal.copy(),
        };
        drop(image);
        Some(killed)
    }

    /// Opens the image with what is in the journal.
    pub fn open(&self, writable: bool) -> qcow::Result<Image> {
        let options = OpenOptions::new(Format::Qcow2)
            .writable(writable)
            .journal(Journal::Use(Arc::new(self.journal.clone())));
        Image::open_storage(Box::new(self.image.clone()), "image.qcow2", &options)
    }

    /// Puts groups of records into a part: their first byte says how many records each has and which part it is. They are whole: each
    /// is numbered, and says that all are needed.
    pub fn forge(&self, mut bytes: &[u8]) {
        let session = word(&self.journal.bytes(), 32);
        let mut parts: [Vec<&[u8]>; 4] = Default::default();
        while let Some((first, rest)) = bytes.split_first() {
            let (part, count) = (
                usize::from(first & 3),
                usize::from(first >> 2).min(rest.len() / RECORD),
            );
            let (records, rest) = rest.split_at(count * RECORD);
            bytes = rest;
            parts[part].push(records);
        }
        let groups: usize = parts.iter().map(Vec::len).sum();
        self.say(groups as u32);
        let mut number = 0;
        for (part, groups) in parts.iter().enumerate() {
            let mut end = 0;
            for records in groups {
                let place = number << 32 | number << 15 | (records.len() / RECORD) as u64;
                let mut words = vec![1 + part as u64, 0, place, 0];
                words.extend((0..records.len() / 8).map(|at| word(records, at * 8)));
                words[3] = checksum(session, &words);
                let group: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
                if end + group.len() > PART {
                    return;
                }
                let at = PARTS_AT + part * PART + end;
                let _ = self.journal.write(at as u64, &&group[..], 0, group.len());
                end += group.len();
                number += 1;
            }
        }
    }

    /// Has the image say that its journal has so many groups: so do the last bytes of its first cluster.
    fn say(&self, groups: u32) {
        let cluster_bits = self.image.bytes().get(23).copied().unwrap_or_default();
        let at = (1u64 << cluster_bits.clamp(9, 21)) - 16;
        let groups = [groups.to_be_bytes(), groups.to_be_bytes()].concat();
        let _ = self.image.write(at, &&groups[..], 0, groups.len());
    }

    /// Puts bytes into the journal.
    pub fn put(&self, at: u64, bytes: &[u8]) {
        let _ = self.journal.write(at, &bytes, 0, bytes.len());
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    let word = bytes.get(at..).and_then(|rest| rest.first_chunk());
    word.map_or(0, |word| u64::from_le_bytes(*word))
}

fn checksum(session: u64, words: &[u64]) -> u64 {
    let start = session ^ 0xcbf2_9ce4_8422_2325;
    words.iter().fold(start, |sum, word| {
        (sum ^ word)
            .wrapping_mul(0x0000_0100_0000_01b3)
            .rotate_left(23)
    })
}
