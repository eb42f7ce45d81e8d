//! What a disk must hold after what was done to it.

use std::collections::BTreeMap;
use std::ops::Range;

use qcow::Image;

/// Disks larger than this are not followed.
const LARGEST: u64 = 1 << 20;
const SECTOR: u64 = 512;

/// The disk, as far as it is known, and what else must be found in the image.
#[derive(Debug)]
pub struct Model {
    disk: Disk,
    /// The disk in the snapshots that were taken since.
    pub snapshots: BTreeMap<String, Disk>,
    /// What bitmaps that were added since must say.
    pub bitmaps: BTreeMap<String, Vec<Range<u64>>>,
}

/// Content, and where nobody knows what it is.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    bytes: Vec<u8>,
    unknown: Vec<Range<u64>>,
}

/// What became of a range.
pub enum Now<'a> {
    /// It holds these bytes.
    Bytes(&'a [u8]),
    /// It reads as zeroes.
    Zero,
    /// An error came: nobody knows.
    Unknown,
}

impl Disk {
    fn set(&mut self, range: Range<u64>, now: &Now<'_>) {
        let mut unknown = Vec::new();
        for old in self.unknown.drain(..) {
            unknown.push(old.start..old.end.min(range.start));
            unknown.push(old.start.max(range.end)..old.end);
        }
        unknown.retain(|part| !part.is_empty());
        self.unknown = unknown;
        let bytes = &mut self.bytes[range.start as usize..range.end as usize];
        match now {
            Now::Bytes(new) => bytes.copy_from_slice(new),
            Now::Zero => bytes.fill(0),
            Now::Unknown => self.unknown.push(range),
        }
    }

    /// Takes what there is in a range for what should be; what cannot be read is unknown.
    fn look(&mut self, image: &Image, range: Range<u64>) {
        let mut buffer = vec![0; (range.end - range.start) as usize];
        if image.read_at(range.start, &mut buffer).is_ok() {
            return self.set(range, &Now::Bytes(&buffer));
        }
        for sector in (range.start / SECTOR)..range.end.div_ceil(SECTOR) {
            let start = (sector * SECTOR).max(range.start);
            let part = start..((sector + 1) * SECTOR).min(range.end);
            let buffer = &mut buffer[..(part.end - part.start) as usize];
            match image.read_at(start, buffer) {
                Ok(()) => self.set(part, &Now::Bytes(buffer)),
                Err(_) => self.set(part, &Now::Unknown),
            }
        }
    }

    fn is_known(&self, at: u64) -> bool {
        !self.unknown.iter().any(|range| range.contains(&at))
    }

    /// Panics unless the image holds what is known.
    pub fn compare(&self, image: &Image, what: &str) {
        assert_eq!(
            image.virtual_size(),
            self.bytes.len() as u64,
            "the size of {what}"
        );
        let mut buffer = [0; 4096];
        for (index, expected) in self.bytes.chunks(buffer.len()).enumerate() {
            let start = (index * buffer.len()) as u64;
            let range = start..start + expected.len() as u64;
            let buffer = &mut buffer[..expected.len()];
            if image.read_at(start, buffer).is_err() {
                // It may only be what could not be read before.
                assert!(
                    self.unknown
                        .iter()
                        .any(|old| old.start < range.end && range.start < old.end),
                    "{what} at {start} cannot be read any more"
                );
                continue;
            }
            if buffer == expected {
                continue;
            }
            for (at, (byte, expected)) in range.zip(buffer.iter().zip(expected)) {
                assert!(
                    byte == expected || !self.is_known(at),
                    "{what} holds {byte:#x} at {at}, not {expected:#x}"
                );
            }
        }
    }
}

impl Model {
    /// Follows an image from now on. None if it is too large, or holds data in places where nobody can tell what else does.
    pub fn of(image: &Image) -> Option<Self> {
        let mut model = Self {
            disk: Disk::default(),
            snapshots: BTreeMap::new(),
            bitmaps: BTreeMap::new(),
        };
        model.reload(image)?;
        keeps_apart(image).then_some(model)
    }

    /// Takes what there is for what should be. `None` if it has become too large.
    pub fn reload(&mut self, image: &Image) -> Option<()> {
        let size = image.virtual_size();
        self.disk = Disk::default();
        self.resize(size)?;
        self.disk.look(image, 0..size);
        Some(())
    }

    /// Says what a range holds now. Bitmaps that are kept must say that it changed, or may have.
    pub fn write(&mut self, range: Range<u64>, now: &Now<'_>) {
        self.disk.set(range.clone(), now);
        if matches!(now, Now::Unknown) {
            return;
        }
        for ranges in self.bitmaps.values_mut().filter(|_| !range.is_empty()) {
            ranges.push(range.clone());
        }
    }

    /// A bitmap has been given what another one says, and a range.
    pub fn merged(&mut self, name: &str, from: Option<&str>, range: Option<Range<u64>>) {
        let told = from.and_then(|from| self.bitmaps.get(from).cloned());
        if let Some(ranges) = self.bitmaps.get_mut(name) {
            ranges.extend(told.into_iter().flatten().chain(range));
        }
    }

    /// A range was discarded: it reads as zeroes or as before.
    pub fn discarded(&mut self, image: &Image, range: Range<u64>) {
        let old = self.disk.clone();
        self.disk.look(image, range.clone());
        let parts = range.start as usize..range.end as usize;
        let (before, after) = (&old.bytes[parts.clone()], &self.disk.bytes[parts]);
        if before == after {
            return;
        }
        for (at, (before, after)) in range.zip(before.iter().zip(after)) {
            assert!(
                *after == 0 || before == after || !old.is_known(at) || !self.disk.is_known(at),
                "discarded data became something else at {at}"
            );
        }
    }

    /// The size has changed; what is added reads as zeroes.
    pub fn resize(&mut self, size: u64) -> Option<()> {
        let len = usize::try_from(size).ok().filter(|_| size <= LARGEST)?;
        self.disk.bytes.resize(len, 0);
        for range in self
            .bitmaps
            .values_mut()
            .flatten()
            .chain(&mut self.disk.unknown)
        {
            range.end = range.end.min(size);
        }
        Some(())
    }

    /// Remembers the disk as a snapshot.
    pub fn keep(&mut self, name: &str) {
        self.snapshots.insert(name.to_owned(), self.disk.clone());
    }

    /// The disk is what it was in a snapshot. False if nobody knows what that was.
    pub fn restore(&mut self, name: &str) -> bool {
        // What bitmaps say then is not followed.
        self.bitmaps.clear();
        match self.snapshots.get(name) {
            Some(disk) => self.disk = disk.clone(),
            None => return false,
        }
        true
    }

    /// Panics unless the image holds all of it.
    pub fn compare(&self, image: &Image) {
        self.disk.compare(image, "the disk");
        for (name, ranges) in &self.bitmaps {
            let told = image.bitmap_ranges(name).expect("a bitmap that was added");
            let told: Vec<_> = told.collect();
            let is_told = |at: u64| {
                told.iter()
                    .any(|(start, len)| (*start..start + len).contains(&at))
            };
            for range in ranges.iter().filter(|range| !range.is_empty()) {
                assert!(
                    is_told(range.start) && is_told(range.end - 1),
                    "bitmap {name} says that {range:?} has not changed: {told:?}"
                );
            }
        }
    }
}

/// Whether no two places of a disk are one place of an external data file, which has no reference counts to tell.
fn keeps_apart(image: &Image) -> bool {
    let facts = image.info().ok().and_then(|info| info.qcow2);
    if facts.is_none_or(|facts| facts.data_file.is_none()) {
        return true;
    }
    let (mut at, size) = (0, image.virtual_size());
    while at < size {
        match image.map_layer(at, size - at) {
            Ok(extent) if extent.offset.is_none_or(|offset| offset == extent.start) => {
                at = extent.start + extent.length;
            }
            _ => return false,
        }
    }
    true
}
