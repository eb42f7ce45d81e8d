//! A process that is killed at any moment: the next one finds all that was written, though it was never flushed.

// clippy knows a test by its attribute, and not what a test is made of.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod peer;

use std::sync::{Arc, Mutex};

use peer::Rng;
use peer::medium::{Event, Medium, SECTOR, apply};
use qcow::{Discard, Format, Image, Keep, OpenOptions, Repair};

const SECTORS: usize = 2048;

/// Memory that outlives the process, and remembers each store: after how many events of the medium, where, what.
#[derive(Clone)]
struct Memory {
    words: Arc<Mutex<Vec<u64>>>,
    stores: Arc<Mutex<Vec<(usize, usize, u64)>>>,
    medium: Medium,
}

impl Memory {
    fn new(words: Vec<u64>, medium: &Medium) -> Self {
        Self {
            words: Arc::new(Mutex::new(words)),
            stores: Arc::default(),
            medium: medium.clone(),
        }
    }

    /// How much has happened.
    fn now(&self) -> usize {
        self.medium.state().log.len() + self.stores.lock().unwrap().len()
    }
}

impl Keep for Memory {
    fn len(&self) -> usize {
        self.words.lock().unwrap().len()
    }

    fn load(&self, at: usize) -> u64 {
        self.words.lock().unwrap()[at]
    }

    fn store(&self, at: usize, word: u64) {
        self.words.lock().unwrap()[at] = word;
        let events = self.medium.state().log.len();
        self.stores.lock().unwrap().push((events, at, word));
    }
}

fn open(medium: &Medium, cache_bytes: usize) -> Image {
    let options = OpenOptions::new(Format::Qcow2)
        .writable(true)
        .discard(Discard::Unmap)
        .cache_bytes(cache_bytes);
    Image::open_storage(Box::new(medium.clone()), "disk", &options).unwrap()
}

/// A write, or zeroes: which sectors, of what, and when.
struct Done {
    sectors: std::ops::Range<usize>,
    value: u64,
    begun: usize,
    done: usize,
}

/// Writes without end, flushes now and then, and never closes the image.
fn work(medium: &Medium, memory: &Memory, seed: u64) -> Vec<Done> {
    let mut rng = Rng(seed);
    let image = open(medium, *rng.pick(&[8 << 10, 1 << 20]));
    image.set_journal(Some(Box::new(memory.clone()))).unwrap();
    let mut done = Vec::new();
    for number in 1..250u64 {
        let start = rng.below(SECTORS as u64) as usize;
        let len = 1 + rng.below((SECTORS - start).min(40) as u64) as usize;
        let (offset, begun) = ((start * SECTOR) as u64, memory.now());
        let value = match rng.below(100) {
            0..70 => {
                let bytes = number.to_le_bytes().repeat(SECTOR / 8 * len);
                image.write_at(offset, &bytes).unwrap();
                number
            }
            70..90 => {
                let unmap = rng.chance(70);
                image
                    .write_zeroes(offset, (len * SECTOR) as u64, unmap)
                    .unwrap();
                0
            }
            _ => {
                image.flush().unwrap();
                continue;
            }
        };
        if image.is_ahead() {
            // As whoever tells a guest of it has to.
            image.flush().unwrap();
        }
        done.push(Done {
            sectors: start..start + len,
            value,
            begun,
            done: memory.now(),
        });
    }
    // Killed: nothing is closed, nothing flushed.
    std::mem::forget(image);
    done
}

/// What there is after `moment` things have happened: the file, and the memory.
fn at_moment(
    start: &[u8],
    words: usize,
    log: &[Event],
    memory: &Memory,
    moment: usize,
) -> (Vec<u8>, Vec<u64>) {
    let (mut bytes, mut kept) = (start.to_vec(), vec![0; words]);
    let stores = memory.stores.lock().unwrap();
    let (mut events, mut stored) = (0, 0);
    while events + stored < moment {
        match stores.get(stored) {
            Some(&(after, at, word)) if after <= events => {
                kept[at] = word;
                stored += 1;
            }
            _ => {
                apply(&mut bytes, &log[events], None);
                events += 1;
            }
        }
    }
    (bytes, kept)
}

/// A new image on a medium that does not remember how it was made.
fn made(seed: u64) -> Medium {
    let medium = Medium::small_clusters(seed, (SECTORS * SECTOR) as u64);
    let bytes = medium.state().bytes.clone();
    Medium::with(bytes)
}

fn value_of(sector: &[u8]) -> u64 {
    let value = u64::from_le_bytes(sector[..8].try_into().unwrap());
    assert!(sector.chunks(8).all(|chunk| chunk == value.to_le_bytes()));
    value
}

#[test]
fn wherever_a_process_is_killed_the_next_one_finds_what_was_written() {
    for seed in 0..9 {
        // Sometimes so small that it is full at times.
        let words = if seed % 2 == 0 { 1024 } else { 32 << 10 };
        let medium = made(seed);
        let start = medium.state().bytes.clone();
        let memory = Memory::new(vec![0; words], &medium);
        let done = work(&medium, &memory, seed);
        let log = medium.state().log.clone();
        let mut rng = Rng(seed + 77);
        for _ in 0..40 {
            let moment = rng.below(memory.now() as u64 + 1) as usize;
            let (bytes, kept) = at_moment(&start, words, &log, &memory, moment);
            let medium = Medium::with(bytes);
            let image = open(&medium, 1 << 20);
            let next = Memory::new(kept, &medium);
            image.set_journal(Some(Box::new(next))).unwrap();

            let found = image.check(Repair::None).unwrap();
            assert_eq!(found.corruptions + found.check_errors, 0, "seed {seed}");
            let mut disk = vec![0; SECTORS * SECTOR];
            image.read_at(0, &mut disk).unwrap();
            for (sector, bytes) in disk.chunks(SECTOR).enumerate() {
                let touching = |done: &&Done| done.sectors.contains(&sector);
                let last = done
                    .iter()
                    .filter(touching)
                    .rfind(|done| done.done <= moment)
                    .map_or(0, |done| done.value);
                let under_way = done
                    .iter()
                    .filter(touching)
                    .find(|done| done.begun <= moment && moment < done.done);
                let value = value_of(bytes);
                assert!(
                    value == last || under_way.is_some_and(|done| done.value == value),
                    "seed {seed}, moment {moment}, sector {sector}: {value}, not {last}"
                );
            }
            image.close().unwrap();
        }
    }
}

#[test]
fn writes_that_allocate_wait_for_no_sync() {
    let medium = made(1);
    let memory = Memory::new(vec![0; 32 << 10], &medium);
    let image = open(&medium, 1 << 20);
    image.set_journal(Some(Box::new(memory))).unwrap();
    let syncs = || {
        let is_sync = |event: &&Event| matches!(event, Event::Sync);
        medium.state().log.iter().filter(is_sync).count()
    };
    let before = syncs();

    for cluster in 0..100 {
        image.write_at(cluster * 4096, &[7; 512]).unwrap();
        assert!(!image.is_ahead());
    }
    assert_eq!(syncs(), before);

    image.flush().unwrap();
    assert!(syncs() > before);
    let flushed = syncs();
    image.write_at(450 << 10, &[7; 512]).unwrap();
    image.flush().unwrap();
    // Refcounts, then the entries that use them.
    assert_eq!(syncs(), flushed + 2);
}

#[test]
fn notes_that_do_not_fit_the_image_change_nothing() {
    let medium = made(0);
    let memory = Memory::new(vec![0; 32 << 10], &medium);
    let image = open(&medium, 1 << 20);
    image.set_journal(Some(Box::new(memory.clone()))).unwrap();
    image.write_at(0, &[7; 512]).unwrap();
    std::mem::forget(image);
    // Somebody else writes to the image before the next process comes.
    let other = open(&medium, 1 << 20);
    other.write_at(1 << 19, &[8; 4096]).unwrap();
    other.close().unwrap();

    let image = open(&medium, 1 << 20);
    let error = image.set_journal(Some(Box::new(memory))).unwrap_err();
    assert!(error.to_string().contains("former process"), "{error}");
    let found = image.check(Repair::None).unwrap();
    assert_eq!((found.corruptions, found.leaks), (0, 0));
    let mut bytes = [0; 512];
    image.read_at(1 << 19, &mut bytes).unwrap();
    assert_eq!(bytes, [8; 512]);
    image.write_at(0, &[9; 512]).unwrap();
    image.close().unwrap();
}
