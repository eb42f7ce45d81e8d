//! A process that is killed at any moment: the next one finds all that was written, though it was never flushed.

// clippy knows a test by its attribute, and not what a test is made of.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod peer;

use std::ops::Range;
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
    sectors: Range<usize>,
    value: u64,
    begun: usize,
    done: usize,
}

/// Writes without end, flushes now and then, and never closes the image.
fn work(medium: &Medium, memory: &Memory, seed: u64) -> Vec<Done> {
    let mut rng = Rng(seed);
    let image = open(medium, *rng.pick(&[8 << 10, 1 << 20]));
    image.set_journal(Some(Box::new(memory.clone()))).unwrap();
    let done = write(&image, memory, &mut rng, 1..250, 70);
    // Killed: nothing is closed, nothing flushed.
    std::mem::forget(image);
    done
}

/// Writes these numbers, zeroes and flushes: data so many times of a hundred.
fn write(
    image: &Image,
    memory: &Memory,
    rng: &mut Rng,
    numbers: Range<u64>,
    data: u64,
) -> Vec<Done> {
    let mut done = Vec::new();
    for number in numbers {
        let start = rng.below(SECTORS as u64) as usize;
        let len = 1 + rng.below((SECTORS - start).min(40) as u64) as usize;
        let (offset, begun) = ((start * SECTOR) as u64, memory.now());
        let value = match rng.below(100) {
            dice if dice < data => {
                let bytes = number.to_le_bytes().repeat(SECTOR / 8 * len);
                image.write_at(offset, &bytes).unwrap();
                number
            }
            ..90 => {
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
    done
}

/// What there is after `moment` things have happened: the file, and the memory.
fn at_moment(
    (mut bytes, mut kept): (Vec<u8>, Vec<u64>),
    log: &[Event],
    memory: &Memory,
    moment: usize,
) -> (Vec<u8>, Vec<u64>) {
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
            let (bytes, kept) = at_moment((start.clone(), vec![0; words]), &log, &memory, moment);
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

/// What each sector may hold.
fn disk_of(image: &Image) -> Vec<u64> {
    let mut disk = vec![0; SECTORS * SECTOR];
    image.read_at(0, &mut disk).unwrap();
    disk.chunks(SECTOR).map(value_of).collect()
}

#[test]
fn processes_that_are_killed_one_after_the_other_lose_nothing() {
    for seed in 0..20 {
        let mut rng = Rng(1000 + seed);
        let words = 8 << 10;
        let mut file = made(seed).state().bytes.clone();
        let mut kept = vec![0; words];
        let mut expected = vec![vec![0]; SECTORS];
        for life in 0..8u64 {
            let medium = Medium::with(file.clone());
            let memory = Memory::new(kept.clone(), &medium);
            let image = open(&medium, *rng.pick(&[8 << 10, 1 << 20]));
            image.set_journal(Some(Box::new(memory.clone()))).unwrap();
            let ready = memory.now();
            // It writes what is unwritten, first of all.
            if rng.chance(50) {
                let found = image.check(Repair::None).unwrap();
                let damage = found.corruptions + found.check_errors;
                assert_eq!(damage, 0, "seed {seed}, {life}: {:?}", found.messages);
            }
            let disk = disk_of(&image);
            for (sector, (value, expected)) in disk.iter().zip(&expected).enumerate() {
                assert!(
                    expected.contains(value),
                    "seed {seed}, {life}, sector {sector}: {value}, not {expected:?}"
                );
            }
            let first = 1 + 100 * life;
            let count = rng.below(12);
            let done = write(&image, &memory, &mut rng, first..first + count, 50);
            std::mem::forget(image);

            // At any moment, and often in the midst of taking over what the former process left.
            let moment = match rng.chance(40) {
                true => rng.below(ready as u64 + 1),
                false => rng.below(memory.now() as u64 + 1),
            } as usize;
            if moment >= ready {
                expected = disk.into_iter().map(|value| vec![value]).collect();
            }
            for done in done.iter().filter(|done| done.begun < moment) {
                for sector in &mut expected[done.sectors.clone()] {
                    if done.done <= moment {
                        sector.clear();
                    }
                    sector.push(done.value);
                }
            }
            let log = medium.state().log.clone();
            (file, kept) = at_moment((file, kept), &log, &memory, moment);
        }
    }
}

#[test]
fn what_is_given_up_is_given_up_once_however_many_processes_are_killed() {
    let words = 8 << 10;
    let medium = made(3);
    let memory = Memory::new(vec![0; words], &medium);
    let image = open(&medium, 1 << 20);
    image.set_journal(Some(Box::new(memory.clone()))).unwrap();
    image.write_at(0, &[1; 4 << 10]).unwrap();
    image.flush().unwrap();
    image.flush().unwrap();
    image.write_zeroes(0, 4 << 10, true).unwrap();
    std::mem::forget(image);
    let left = (
        medium.state().bytes.clone(),
        memory.words.lock().unwrap().clone(),
    );

    let medium = Medium::with(left.0.clone());
    let memory = Memory::new(left.1.clone(), &medium);
    let image = open(&medium, 1 << 20);
    image.set_journal(Some(Box::new(memory.clone()))).unwrap();
    // Where that was.
    image.write_at(1 << 19, &[2; 4 << 10]).unwrap();
    let written = memory.now();
    image.flush().unwrap();
    image.flush().unwrap();
    std::mem::forget(image);

    let log = medium.state().log.clone();
    for moment in 0..=memory.now() {
        let (bytes, kept) = at_moment(left.clone(), &log, &memory, moment);
        let medium = Medium::with(bytes);
        let memory = Memory::new(kept, &medium);
        let image = open(&medium, 1 << 20);
        let taken = image.set_journal(Some(Box::new(memory)));
        assert!(taken.is_ok(), "{moment}: {taken:?}");
        let found = image.check(Repair::None).unwrap();
        let damage = found.corruptions + found.check_errors;
        assert_eq!(damage, 0, "{moment}: {:?}", found.messages);
        let disk = disk_of(&image);
        assert_eq!(disk[0], 0, "{moment}");
        let last = disk[(1 << 19) / SECTOR];
        assert!(
            moment < written || last == 0x0202_0202_0202_0202,
            "{moment}"
        );
    }
}

#[test]
fn what_was_unwritten_when_notes_began_does_not_keep_them_from_being_found() {
    let medium = made(5);
    let memory = Memory::new(vec![0; 32 << 10], &medium);
    let image = open(&medium, 1 << 20);
    image.write_at(0, &[1; 64 << 10]).unwrap();
    image.flush().unwrap();
    // Once this is in the file, there are refcounts to write.
    image.write_zeroes(0, 64 << 10, true).unwrap();
    image.set_journal(Some(Box::new(memory.clone()))).unwrap();
    image.write_at(1 << 19, &[7; 512]).unwrap();
    assert!(!image.is_ahead());
    std::mem::forget(image);

    let image = open(&medium, 1 << 20);
    image.set_journal(Some(Box::new(memory))).unwrap();
    let mut bytes = [0; 512];
    image.read_at(1 << 19, &mut bytes).unwrap();
    assert_eq!(bytes, [7; 512]);
}

#[test]
fn who_takes_no_more_notes_leaves_none() {
    let medium = made(6);
    let memory = Memory::new(vec![0; 8 << 10], &medium);
    let image = open(&medium, 1 << 20);
    image.set_journal(Some(Box::new(memory.clone()))).unwrap();
    image.write_at(0, &[1; 4 << 10]).unwrap();
    image.flush().unwrap();
    image.write_zeroes(0, 4 << 10, true).unwrap();
    image.set_journal(None).unwrap();
    // What is done now makes another image of it than the notes were about.
    image.write_at(0, &[2; 4 << 10]).unwrap();
    image.close().unwrap();

    let image = open(&medium, 1 << 20);
    image.set_journal(Some(Box::new(memory))).unwrap();
    assert_eq!(disk_of(&image)[0], 0x0202_0202_0202_0202);
    assert!(image.check(Repair::None).unwrap().is_sound());
}

#[test]
fn no_notes_are_relied_on_once_refcounts_may_be_stale() {
    let medium = made(7);
    let memory = Memory::new(vec![0; 8 << 10], &medium);
    let image = open(&medium, 1 << 20);
    image.set_journal(Some(Box::new(memory.clone()))).unwrap();
    image.set_lazy_refcounts(true).unwrap();
    image.write_at(1 << 19, &[7; 4 << 10]).unwrap();
    if image.is_ahead() {
        image.flush().unwrap();
    }
    std::mem::forget(image);

    let image = open(&medium, 1 << 20);
    image.set_journal(Some(Box::new(memory))).unwrap();
    let disk = disk_of(&image);
    assert_eq!(disk[(1 << 19) / SECTOR], 0x0707_0707_0707_0707);
}

#[test]
fn writes_that_allocate_wait_for_no_sync() {
    let medium = made(1);
    let memory = Memory::new(vec![0; 32 << 10], &medium);
    let image = open(&medium, 1 << 20);
    let syncs = || {
        let is_sync = |event: &&Event| matches!(event, Event::Sync);
        medium.state().log.iter().filter(is_sync).count()
    };
    let before = syncs();
    image.set_journal(Some(Box::new(memory))).unwrap();
    assert_eq!(syncs(), before, "there was nothing to write");

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
