//! What an image may hold after a crash.

use std::collections::BTreeMap;

use crate::peer::medium::SECTOR;

/// What a sector holds: 0 for zeroes, otherwise the number of one write of one sector; the bytes follow from it.
pub(crate) type Value = u64;

/// A value that does not compress.
pub(crate) const DENSE: Value = 1 << 63;
/// A sector that is about to be cut off: it may hold anything.
const ANY: Value = u64::MAX;

/// The bytes of a sector.
pub(crate) fn bytes_of(value: Value) -> [u8; SECTOR] {
    let mut bytes = [0; SECTOR];
    let mut word = value;
    for chunk in bytes.chunks_exact_mut(8) {
        chunk.copy_from_slice(&word.to_be_bytes());
        if value & DENSE != 0 {
            word = word.wrapping_mul(0x5851_f42d_4c95_7f2d).rotate_left(23) ^ 0x1405_7b7e_f767_814f;
        }
    }
    bytes
}

/// The bytes of a row of sectors.
pub(crate) fn bytes_of_all(values: &[Value]) -> Vec<u8> {
    values.iter().flat_map(|value| bytes_of(*value)).collect()
}

/// The value with these bytes; `None` if there is none, for instance because they are a mixture of two.
pub(crate) fn value_of(bytes: &[u8]) -> Option<Value> {
    let value = Value::from_be_bytes(bytes[..8].try_into().unwrap());
    (bytes_of(value)[..] == *bytes).then_some(value)
}

/// What a bitmap that can be trusted must report: where the disk differs from what it was.
#[derive(Clone, Default)]
pub(crate) struct Bitmap {
    pub(crate) enabled: bool,
    /// The disk when the bitmap was last empty: several candidates while that changes, none if it is not known.
    pub(crate) since: Vec<Vec<Value>>,
}

/// The disk as it was.
pub(crate) struct Snapshot {
    pub(crate) values: Vec<Value>,
    pub(crate) bytes: Vec<u8>,
}

impl Snapshot {
    pub(crate) fn new(values: Vec<Value>) -> Self {
        let bytes = bytes_of_all(&values);
        Self { values, bytes }
    }
}

/// The values each sector may have after a crash, by its number.
pub(crate) struct Model {
    /// The disk as a reader sees it now.
    pub(crate) now: Vec<Value>,
    allowed: Vec<Vec<Value>>,
    sizes: Vec<usize>,
    pub(crate) snapshots: BTreeMap<String, Snapshot>,
    /// The snapshot that the present operation takes: it may not be there yet.
    pub(crate) fresh: Option<String>,
    pub(crate) bitmaps: BTreeMap<String, Bitmap>,
    /// The names that the image may have for its backing file and its external data file.
    pub(crate) names: [Vec<String>; 2],
    /// The disk looked at last, and its values: most sectors are the same after the next crash.
    seen: (Vec<u8>, Vec<Option<Value>>),
}

impl Model {
    pub(crate) fn new(disk: Vec<Value>) -> Self {
        Self {
            allowed: disk.iter().map(|value| vec![*value]).collect(),
            sizes: vec![disk.len()],
            now: disk,
            snapshots: BTreeMap::new(),
            fresh: None,
            bitmaps: BTreeMap::new(),
            names: Default::default(),
            seen: (Vec::new(), Vec::new()),
        }
    }

    pub(crate) fn set(&mut self, sector: usize, value: Value) {
        self.now[sector] = value;
        self.allowed[sector].push(value);
    }

    /// The sector may or may not come to hold `value`: the reader decides.
    pub(crate) fn permit(&mut self, sector: usize, value: Value) {
        self.allowed[sector].push(value);
    }

    /// Everything up to now is on the medium.
    pub(crate) fn flushed(&mut self) {
        self.sizes = vec![self.now.len()];
        self.allowed.truncate(self.now.len());
        for (allowed, now) in self.allowed.iter_mut().zip(&self.now) {
            *allowed = vec![*now];
        }
    }

    pub(crate) fn resize(&mut self, sectors: usize) {
        self.sizes.push(sectors);
        // What is cut off may be gone before the size changes; what is added reads as zeroes.
        for sector in sectors.min(self.now.len())..self.now.len() {
            self.set(sector, 0);
        }
        for bitmap in self.bitmaps.values_mut() {
            for since in &mut bitmap.since {
                let kept = sectors.min(since.len());
                since[kept..].fill(ANY);
            }
        }
        self.now.resize(sectors, 0);
        if self.allowed.len() < sectors {
            self.allowed.resize(sectors, Vec::new());
        }
        for (allowed, now) in self.allowed.iter_mut().zip(&self.now) {
            if allowed.last() != Some(now) {
                allowed.push(*now);
            }
        }
    }

    /// To be called when the operation has ended: its effects are no longer optional.
    pub(crate) fn settle(&mut self) {
        self.fresh = None;
        for names in &mut self.names {
            names.drain(..names.len().saturating_sub(1));
        }
        let sectors = self.now.len();
        for bitmap in self.bitmaps.values_mut() {
            if let Some(since) = bitmap.since.pop() {
                bitmap.since = vec![since];
            }
            for since in &mut bitmap.since {
                since
                    .iter_mut()
                    .filter(|value| **value == ANY)
                    .for_each(|value| *value = 0);
                since.resize(sectors, 0);
            }
        }
    }

    fn values_of(&mut self, disk: &[u8]) -> Vec<Option<Value>> {
        let (old, known) = &self.seen;
        let mut old = old.chunks(SECTOR).zip(known);
        let values: Vec<Option<Value>> = disk
            .chunks(SECTOR)
            .map(|bytes| match old.next() {
                Some((same, value)) if same == bytes => *value,
                _ => value_of(bytes),
            })
            .collect();
        self.seen = (disk.to_vec(), values.clone());
        values
    }

    /// Panics unless the disk may be this after a crash; returns its values.
    pub(crate) fn check_disk(&mut self, disk: &[u8], context: &str) -> Vec<Value> {
        let values = self.values_of(disk);
        assert!(
            self.sizes.contains(&values.len()),
            "{context}: {} sectors, not {:?}",
            values.len(),
            self.sizes
        );
        let sectors = values.iter().zip(&self.allowed).enumerate();
        sectors
            .map(|(sector, (value, allowed))| match value {
                Some(value) if allowed.contains(value) => *value,
                _ => panic!(
                    "{context}: sector {sector} holds {value:x?} ({:02x?}…), which is none of {allowed:x?}",
                    &disk[sector * SECTOR..][..16]
                ),
            })
            .collect()
    }

    /// Panics unless a raw external data file may be this after a crash, when the disk has so many sectors.
    pub(crate) fn check_raw(&self, file: &[u8], sectors: usize, context: &str) {
        let sectors = file.chunks(SECTOR).take(sectors).zip(&self.allowed);
        for (sector, (bytes, allowed)) in sectors.enumerate() {
            let value = value_of(bytes);
            assert!(
                value.is_some_and(|value| allowed.contains(&value)),
                "{context}: sector {sector} of the raw data file holds {value:x?}, which is none of {allowed:x?}"
            );
        }
    }

    /// Panics unless the image names its files by the former or the present names.
    pub(crate) fn check_names(&self, found: [Option<String>; 2], context: &str) {
        for (names, found) in self.names.iter().zip(found) {
            let fits = match &found {
                Some(name) => names.contains(name),
                None => names.is_empty(),
            };
            assert!(fits, "{context}: {found:?} is named, not one of {names:?}");
        }
    }

    /// Panics if a bitmap that is marked as consistent lacks a change.
    pub(crate) fn check_bitmap(
        &self,
        name: &str,
        disk: &[Value],
        ranges: &[(u64, u64)],
        context: &str,
    ) {
        let Some(bitmap) = self.bitmaps.get(name) else {
            return;
        };
        let mut reported = vec![false; disk.len()];
        for (start, len) in ranges {
            reported[*start as usize / SECTOR..(*start + *len) as usize / SECTOR].fill(true);
        }
        let silent = |since: &Vec<Value>| {
            (0..disk.len()).find(|sector| {
                let old = since.get(*sector).copied().unwrap_or(0);
                !reported[*sector] && old != ANY && disk[*sector] != old
            })
        };
        let silences: Vec<Option<usize>> = bitmap.since.iter().map(silent).collect();
        assert!(
            silences.is_empty() || silences.contains(&None),
            "{context}: bitmap {name} says that sector {silences:?} has not changed"
        );
    }
}
