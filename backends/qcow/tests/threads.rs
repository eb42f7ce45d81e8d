//! Several threads on one image, as the queues of a disk are: each finds what it wrote, and so it does after a power
//! cut.

// clippy knows a test by its attribute, and not what a test is made of.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod peer;

use std::sync::atomic::{AtomicU64, Ordering};

use peer::Rng;
use peer::around::Around;
use peer::medium::{Event, Medium, SECTOR, apply};
use qcow::{Discard, Format, Image, OpenOptions, Repair};

const THREADS: usize = 4;
/// Sectors that belong to the threads in turn, so that they meet in every cluster.
const SHARED: usize = 1024;
/// Sectors that each thread has beside that, for what concerns whole clusters.
const OWN: usize = 512;
const SECTORS: usize = SHARED + THREADS * OWN;
const STEPS: usize = 150;

/// What a sector was made: between which events of the medium, and of which value it is full then.
#[derive(Clone, Copy, Debug)]
struct Change {
    begun: usize,
    done: usize,
    value: u64,
}

/// One thread's part of the disk, and what became of it.
struct Part {
    number: usize,
    rng: Rng,
    sectors: Vec<usize>,
    changes: Vec<Vec<Change>>,
    /// When each flush began and returned.
    flushes: Vec<(usize, usize)>,
    writes: u64,
}

impl Part {
    fn new(number: usize, seed: u64) -> Self {
        let mut sectors: Vec<usize> = (number..SHARED).step_by(THREADS).collect();
        sectors.extend(SHARED + number * OWN..SHARED + (number + 1) * OWN);
        Self {
            number,
            rng: Rng(seed * 64 + number as u64),
            changes: vec![Vec::new(); sectors.len()],
            sectors,
            flushes: Vec::new(),
            writes: 0,
        }
    }

    fn value_at(&self, index: usize) -> u64 {
        self.changes[index].last().map_or(0, |change| change.value)
    }

    fn note(&mut self, indices: std::ops::Range<usize>, begun: usize, done: usize, value: u64) {
        for changes in &mut self.changes[indices] {
            changes.push(Change { begun, done, value });
        }
    }

    /// A range of sectors that belong to this thread alone, as indices.
    fn own_range(&mut self) -> std::ops::Range<usize> {
        let first = self.sectors.len() - OWN;
        let start = self.rng.below(OWN as u64) as usize;
        let len = 1 + self.rng.below((OWN - start).min(64) as u64) as usize;
        first + start..first + start + len
    }

    fn range(&mut self) -> std::ops::Range<usize> {
        if self.rng.chance(60) {
            let index = self.rng.below((SHARED / THREADS) as u64) as usize;
            index..index + 1
        } else {
            self.own_range()
        }
    }

    fn step(&mut self, image: &Image, medium: &Medium) {
        let now = || medium.state().log.len();
        let begun = now();
        match self.rng.below(100) {
            0..50 => {
                let range = self.range();
                self.writes += 1;
                let value = (self.number as u64 + 1) << 32 | self.writes;
                let bytes = value.to_le_bytes().repeat(SECTOR / 8 * range.len());
                let offset = (self.sectors[range.start] * SECTOR) as u64;
                image.write_at(offset, &bytes).unwrap();
                self.note(range, begun, now(), value);
            }
            50..65 => {
                let range = self.own_range();
                let offset = (self.sectors[range.start] * SECTOR) as u64;
                let unmap = self.rng.chance(70);
                let len = (range.len() * SECTOR) as u64;
                image.write_zeroes(offset, len, unmap).unwrap();
                self.note(range, begun, now(), 0);
            }
            65..90 => {
                let range = self.range();
                let mut bytes = vec![0; range.len() * SECTOR];
                let offset = (self.sectors[range.start] * SECTOR) as u64;
                image.read_at(offset, &mut bytes).unwrap();
                for (index, sector) in range.zip(bytes.chunks(SECTOR)) {
                    assert_eq!(value_of(sector), Some(self.value_at(index)));
                }
            }
            _ => {
                image.flush().unwrap();
                self.flushes.push((begun, now()));
            }
        }
    }

    /// What a sector may be after a power cut before event `cut`: as the last flush that had returned found it, or as
    /// it was made since.
    fn possible(&self, index: usize, cut: usize) -> Vec<u64> {
        let flushed = self
            .flushes
            .iter()
            .filter(|(_, returned)| *returned <= cut)
            .map(|(begun, _)| *begun)
            .max()
            .unwrap_or(0);
        let mut possible = vec![0];
        for change in &self.changes[index] {
            if change.done <= flushed {
                possible.clear();
            }
            if change.begun < cut {
                possible.push(change.value);
            }
        }
        possible
    }
}

/// What a sector is full of, if it is of one thing.
fn value_of(sector: &[u8]) -> Option<u64> {
    let value = u64::from_le_bytes(sector[..8].try_into().unwrap());
    sector
        .chunks(8)
        .all(|chunk| chunk == value.to_le_bytes())
        .then_some(value)
}

fn open(medium: Medium, cache_bytes: usize) -> Image {
    let options = OpenOptions::new(Format::Qcow2)
        .writable(true)
        .discard(Discard::Unmap)
        .cache_bytes(cache_bytes);
    Image::open_storage(Box::new(slow(medium)), "disk", &options).unwrap()
}

/// A medium on which every access takes its time.
fn slow(medium: Medium) -> Around {
    let times = AtomicU64::new(0);
    let linger = move || {
        let mut rng = Rng(times.fetch_add(1, Ordering::Relaxed));
        for _ in 0..rng.below(4) {
            std::thread::yield_now();
        }
    };
    Around::new(medium, move |_, access| {
        linger();
        access()?;
        linger();
        Ok(())
    })
}

/// The threads at work; gives what they did.
fn work(medium: &Medium, seed: u64) -> Vec<Part> {
    // Sometimes so small that threads commit in the midst of everything.
    let cache_bytes = if seed.is_multiple_of(2) {
        8 << 10
    } else {
        1 << 20
    };
    let image = open(medium.clone(), cache_bytes);
    let mut parts: Vec<Part> = (0..THREADS).map(|number| Part::new(number, seed)).collect();
    std::thread::scope(|scope| {
        for part in &mut parts {
            let image = &image;
            scope.spawn(move || (0..STEPS).for_each(|_| part.step(image, medium)));
        }
    });
    image.close().unwrap();
    parts
}

fn made(seed: u64) -> Medium {
    let medium = Medium::small_clusters(seed, (SECTORS * SECTOR) as u64);
    medium.state().log.push(Event::Sync);
    medium
}

#[test]
fn each_thread_finds_what_it_wrote_and_the_image_is_sound() {
    for seed in 0..12 {
        let medium = made(seed);
        let parts = work(&medium, seed);

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.qcow2");
        std::fs::write(&path, &medium.state().bytes).unwrap();
        peer::check(&path);
        let image = Image::open(&path, &OpenOptions::new(Format::Qcow2)).unwrap();
        let found = image.check(Repair::None).unwrap();
        assert_eq!((found.corruptions, found.leaks), (0, 0), "seed {seed}");
        for part in &parts {
            for (index, sector) in part.sectors.iter().enumerate() {
                let mut bytes = [0; SECTOR];
                image.read_at((sector * SECTOR) as u64, &mut bytes).unwrap();
                let expected = Some(part.value_at(index));
                assert_eq!(value_of(&bytes), expected, "seed {seed}, sector {sector}");
            }
        }
    }
}

/// A power cut before event `cut`: the medium has all up to the last sync, and any part of what came after it.
fn after_cut(log: &[Event], cut: usize, rng: &mut Rng) -> Vec<u8> {
    let synced = log[..cut]
        .iter()
        .rposition(|event| matches!(event, Event::Sync))
        .unwrap_or(0);
    let mut bytes = Vec::new();
    for event in &log[..synced] {
        apply(&mut bytes, event, None);
    }
    let percent = *rng.pick(&[10, 50, 90]);
    for event in &log[synced..cut] {
        // The length of the file is the file system's to keep.
        if matches!(event, Event::SetLen(_)) {
            apply(&mut bytes, event, None);
        } else if rng.chance(percent) {
            apply(&mut bytes, event, rng.chance(50).then_some(&mut *rng));
        }
    }
    bytes
}

#[test]
fn after_a_power_cut_the_image_is_sound_and_has_what_each_thread_flushed() {
    let cuts: usize =
        std::env::var("QCOW_THREAD_CUTS").map_or(40, |value| value.parse().expect("a number"));
    for seed in 0..6 {
        let medium = made(seed);
        let start = medium.state().log.len();
        let parts = work(&medium, seed);
        let log = medium.state().log.clone();
        let mut rng = Rng(seed + 1000);
        for _ in 0..cuts {
            let cut = start + rng.below((log.len() - start) as u64) as usize;
            let bytes = after_cut(&log, cut, &mut rng);
            let options = OpenOptions::new(Format::Qcow2).for_check(true);
            let image = Image::open_storage(Box::new(Medium::with(bytes)), "cut", &options);
            let image = image.unwrap();
            let found = image.check(Repair::None).unwrap();
            let broken = found.corruptions + found.check_errors;
            assert_eq!(broken, 0, "seed {seed}, cut {cut} of {}", log.len());
            for part in &parts {
                for (index, sector) in part.sectors.iter().enumerate() {
                    let mut bytes = [0; SECTOR];
                    image.read_at((sector * SECTOR) as u64, &mut bytes).unwrap();
                    let possible = part.possible(index, cut);
                    let found = value_of(&bytes);
                    assert!(
                        found.is_some_and(|value| possible.contains(&value)),
                        "seed {seed}, cut {cut}, sector {sector}: {found:x?} is none of {possible:x?}"
                    );
                }
            }
        }
    }
}
