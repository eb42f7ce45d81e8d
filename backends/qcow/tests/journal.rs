//! A process that is killed at any moment: whoever opens the image next finds all that was written, though it was never flushed, and
//! nothing leaks.

// clippy knows a test by its attribute, and not what a test is made of.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod peer;

use std::ops::Range;
use std::sync::Arc;

use peer::Rng;
use peer::medium::{Event, Medium, SECTOR, apply};
use qcow::{Discard, Format, Image, Journal, OpenOptions, Repair, Storage};

const SECTORS: usize = 2048;
const PART: usize = 512 << 10;

/// An image and the journal beside it, on one clock; both outlive the process.
#[derive(Clone)]
struct Files {
    image: Medium,
    journal: Medium,
}

impl Files {
    fn new(image: Vec<u8>, journal: Vec<u8>) -> Self {
        let image = Medium::with(image);
        let beside = image.beside();
        beside.state().bytes = journal;
        Self {
            image,
            journal: beside,
        }
    }

    /// A new image, and nothing beside it.
    fn made(seed: u64) -> Self {
        let medium = Medium::small_clusters(seed, (SECTORS * SECTOR) as u64);
        let bytes = medium.state().bytes.clone();
        Self::new(bytes, Vec::new())
    }

    /// As they are now.
    fn again(&self) -> Self {
        let bytes = |medium: &Medium| medium.state().bytes.clone();
        Self::new(bytes(&self.image), bytes(&self.journal))
    }

    /// How much has happened.
    fn now(&self) -> usize {
        self.image.now()
    }

    fn options(&self) -> OpenOptions {
        OpenOptions::new(Format::Qcow2)
            .discard(Discard::Unmap)
            .journal(Journal::Use(Arc::new(self.journal.clone())))
    }

    fn open_as(&self, options: &OpenOptions) -> qcow::Result<Image> {
        Image::open_storage(Box::new(self.image.clone()), "disk", options)
    }

    fn open(&self, cache_bytes: usize) -> Image {
        let options = self.options().writable(true).cache_bytes(cache_bytes);
        let image = self.open_as(&options).unwrap();
        assert!(image.has_journal());
        image
    }

    /// What there was after `moment` things had happened to what `start` was; what happened next may be there in part.
    fn at_moment(&self, start: &Self, moment: usize, rng: &mut Rng) -> Self {
        let bytes = |medium: &Medium, start: &Medium, rng: &mut Rng| {
            let mut bytes = start.state().bytes.clone();
            let state = medium.state();
            for (event, time) in state.log.iter().zip(&state.times) {
                if *time < moment {
                    apply(&mut bytes, event, None);
                } else if let Event::Write { offset, bytes: all } = event
                    && *time == moment
                {
                    // A kill ends a write between two pages of the host's cache.
                    let pages = rng.below(1 + (all.len() / 4096) as u64) as usize;
                    let cut = ((offset / 4096 + pages) * 4096).saturating_sub(*offset);
                    let part = Event::Write {
                        offset: *offset,
                        bytes: all[..cut.min(all.len())].to_vec(),
                    };
                    apply(&mut bytes, &part, None);
                }
            }
            bytes
        };
        let image = bytes(&self.image, &start.image, rng);
        Self::new(image, bytes(&self.journal, &start.journal, rng))
    }
}

/// A write, or zeroes: which sectors, of what, and when.
struct Done {
    sectors: Range<usize>,
    value: u64,
    begun: usize,
    done: usize,
}

/// Writes these numbers, zeroes and flushes: data so many times of a hundred, and flushes so many.
fn write(
    (image, files): (&Image, &Files),
    rng: &mut Rng,
    numbers: Range<u64>,
    (data, flushes): (u64, u64),
) -> Vec<Done> {
    let mut done = Vec::new();
    for number in numbers {
        let start = rng.below(SECTORS as u64) as usize;
        let len = 1 + rng.below((SECTORS - start).min(40) as u64) as usize;
        let (offset, begun) = ((start * SECTOR) as u64, files.now());
        let value = match rng.below(100) {
            dice if dice < flushes => {
                image.flush().unwrap();
                continue;
            }
            dice if dice < flushes + data => {
                let bytes = number.to_le_bytes().repeat(SECTOR / 8 * len);
                image.write_at(offset, &bytes).unwrap();
                number
            }
            _ => {
                let unmap = rng.chance(70);
                image
                    .write_zeroes(offset, (len * SECTOR) as u64, unmap)
                    .unwrap();
                0
            }
        };
        // As whoever tells a guest of it has to.
        image.secure().unwrap();
        assert!(!image.is_ahead());
        done.push(Done {
            sectors: start..start + len,
            value,
            begun,
            done: files.now(),
        });
    }
    done
}

fn value_of(sector: &[u8]) -> u64 {
    let value = u64::from_le_bytes(sector[..8].try_into().unwrap());
    assert!(sector.chunks(8).all(|chunk| chunk == value.to_le_bytes()));
    value
}

/// What each sector holds.
fn disk_of(image: &Image) -> Vec<u64> {
    let mut disk = vec![0; SECTORS * SECTOR];
    image.read_at(0, &mut disk).unwrap();
    disk.chunks(SECTOR).map(value_of).collect()
}

fn is_sound(image: &Image, when: &str) {
    let found = image.check(Repair::None).unwrap();
    let what = (found.corruptions + found.check_errors, found.leaks);
    assert_eq!(what, (0, 0), "{when}: {:?}", found.messages);
}

#[test]
fn wherever_a_process_is_killed_the_next_one_finds_what_was_written_and_nothing_leaks() {
    for seed in 0..9 {
        let start = Files::made(seed);
        let files = start.again();
        let mut rng = Rng(seed);
        let image = files.open(*rng.pick(&[8 << 10, 1 << 20]));
        // Sometimes so much without a flush that parts of the journal are full.
        let (numbers, flushes) = if seed < 6 { (1..250, 10) } else { (1..700, 0) };
        let done = write((&image, &files), &mut rng, numbers, (60, flushes));
        // Killed: nothing is closed, nothing flushed.
        std::mem::forget(image);

        let mut rng = Rng(seed + 77);
        for _ in 0..25 {
            let moment = rng.below(files.now() as u64 + 1) as usize;
            let found = files.at_moment(&start, moment, &mut rng);
            let when = format!("seed {seed}, moment {moment}");
            let read_only = found.open_as(&found.options()).unwrap();
            is_sound(&read_only, &when);
            assert_eq!(found.now(), 0, "reading changes nothing");
            let disk = disk_of(&read_only);
            drop(read_only);
            for (sector, value) in disk.iter().enumerate() {
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
                assert!(
                    *value == last || under_way.is_some_and(|done| done.value == *value),
                    "{when}, sector {sector}: {value}, not {last}"
                );
            }
            let image = found.open(1 << 20);
            assert_eq!(disk_of(&image), disk, "{when}");
            is_sound(&image, &when);
            image.close().unwrap();
            assert!(found.journal.state().bytes.is_empty());
        }
    }
}

#[test]
fn processes_that_are_killed_one_after_the_other_lose_nothing_and_leak_nothing() {
    for seed in 0..20 {
        let mut rng = Rng(1000 + seed);
        let mut start = Files::made(seed);
        let mut expected = vec![vec![0]; SECTORS];
        for life in 0..8u64 {
            let files = start.again();
            let when = format!("seed {seed}, life {life}");
            let image = files.open(*rng.pick(&[8 << 10, 1 << 20]));
            let ready = files.now();
            // It writes what is unwritten, first of all.
            if rng.chance(50) {
                is_sound(&image, &when);
            }
            let disk = disk_of(&image);
            for (sector, (value, expected)) in disk.iter().zip(&expected).enumerate() {
                assert!(
                    expected.contains(value),
                    "{when}, sector {sector}: {value}, not {expected:?}"
                );
            }
            let first = 1 + 100 * life;
            let count = rng.below(12);
            let done = write((&image, &files), &mut rng, first..first + count, (50, 10));
            std::mem::forget(image);

            // At any moment, and often in the midst of taking over what the former process left.
            let moment = match rng.chance(40) {
                true => rng.below(ready as u64 + 1),
                false => rng.below(files.now() as u64 + 1),
            } as usize;
            if moment >= ready {
                expected = disk.into_iter().map(|value| vec![value]).collect();
            }
            for done in done.iter().filter(|done| done.begun <= moment) {
                for sector in &mut expected[done.sectors.clone()] {
                    if done.done <= moment {
                        sector.clear();
                    }
                    sector.push(done.value);
                }
            }
            start = files.at_moment(&start, moment, &mut rng);
        }
        let image = start.open(1 << 20);
        is_sound(&image, &format!("seed {seed}"));
        image.close().unwrap();
    }
}

#[test]
fn what_is_given_up_is_given_up_once_however_many_processes_are_killed() {
    let files = Files::made(3);
    let image = files.open(1 << 20);
    image.write_at(0, &[1; 4 << 10]).unwrap();
    image.flush().unwrap();
    image.flush().unwrap();
    image.write_zeroes(0, 4 << 10, true).unwrap();
    image.secure().unwrap();
    std::mem::forget(image);

    let left = files.again();
    let files = left.again();
    let image = files.open(1 << 20);
    // Where that was.
    image.write_at(1 << 19, &[2; 4 << 10]).unwrap();
    image.secure().unwrap();
    let written = files.now();
    image.flush().unwrap();
    image.flush().unwrap();
    std::mem::forget(image);

    let mut rng = Rng(1);
    for moment in 0..=files.now() {
        let found = files.at_moment(&left, moment, &mut rng);
        let image = found.open(1 << 20);
        is_sound(&image, &format!("{moment}"));
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
fn no_journal_is_relied_on_once_refcounts_may_be_stale() {
    let files = Files::made(7);
    let image = files.open(1 << 20);
    image.set_lazy_refcounts(true).unwrap();
    assert!(!image.has_journal());
    image.write_at(1 << 19, &[7; 4 << 10]).unwrap();
    image.secure().unwrap();
    std::mem::forget(image);

    let options = files.options().writable(true);
    let disk = disk_of(&files.open_as(&options).unwrap());
    assert_eq!(disk[(1 << 19) / SECTOR], 0x0707_0707_0707_0707);
}

#[test]
fn writes_that_allocate_wait_for_no_sync() {
    let files = Files::made(1);
    let image = files.open(1 << 20);
    let syncs = || {
        let is_sync = |event: &&Event| matches!(event, Event::Sync);
        files.image.state().log.iter().filter(is_sync).count()
    };
    let before = syncs();
    for cluster in 0..100 {
        image.write_at(cluster * 4096, &[7; 512]).unwrap();
        image.secure().unwrap();
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
fn a_journal_is_kept_when_refcounts_have_another_width() {
    let files = Files::made(1);
    let image = files.open(1 << 20);
    image.write_at(0, &[6; 4096]).unwrap();
    image.set_refcount_bits(32).unwrap();
    let syncs = || {
        let is_sync = |event: &&Event| matches!(event, Event::Sync);
        files.image.state().log.iter().filter(is_sync).count()
    };
    let before = syncs();
    image.write_at(64 << 10, &[7; 4096]).unwrap();
    image.secure().unwrap();
    assert_eq!(syncs(), before, "it is noted");
    std::mem::forget(image);
    let image = files.again().open(1 << 20);
    is_sound(&image, "with refcounts of 32 bits");
    let disk = disk_of(&image);
    assert_eq!(disk[0], 0x0606_0606_0606_0606);
    assert_eq!(disk[(64 << 10) / SECTOR], 0x0707_0707_0707_0707);
}

/// An image with a write that only its journal knows of.
fn killed() -> Files {
    let files = Files::made(2);
    let image = files.open(1 << 20);
    image.write_at(0, &[7; 4096]).unwrap();
    image.secure().unwrap();
    std::mem::forget(image);
    files.again()
}

#[test]
fn a_journal_is_not_believed_once_another_program_has_written_the_image() {
    let files = killed();
    // A program that does not know of journals clears what it does not know when it opens the image for writing.
    files.image.state().bytes[88..90].fill(0);
    assert!(session_in_header(&files) > 104);
    let ignoring = OpenOptions::new(Format::Qcow2).writable(true);
    let other = files.open_as(&ignoring).unwrap();
    other.write_at(1 << 19, &[8; 4096]).unwrap();
    other.close().unwrap();

    let image = files.open(1 << 20);
    is_sound(&image, "after another program");
    let disk = disk_of(&image);
    assert_eq!(disk[(1 << 19) / SECTOR], 0x0808_0808_0808_0808);
    assert_eq!(disk[0], 0);
    image.write_at(0, &[9; 512]).unwrap();
    image.close().unwrap();
}

/// Words of the journal's header, whose last one is their checksum.
const SESSION_AT: usize = 32;
const DEVICE_AT: usize = 16;
const BOOT_AT: usize = 40;

fn change_header(files: &Files, at: usize) {
    let mut state = files.journal.state();
    state.bytes[at] ^= 1;
    let sum = checksum(0, &state.bytes[..56]);
    state.bytes[56..64].copy_from_slice(&sum.to_le_bytes());
}

/// As the journal's documentation has it.
fn checksum(session: u64, bytes: &[u8]) -> u64 {
    let words = bytes
        .chunks(8)
        .map(|word| u64::from_le_bytes(word.try_into().unwrap()));
    words.fold(session ^ 0xcbf2_9ce4_8422_2325, |sum, word| {
        (sum ^ word)
            .wrapping_mul(0x0000_0100_0000_01b3)
            .rotate_left(23)
    })
}

/// Where the image's header has the session.
fn session_in_header(files: &Files) -> usize {
    let bytes = files.image.state().bytes[..4096].to_vec();
    bytes.windows(4).position(|kind| kind == b"BHJL").unwrap() + 8
}

#[test]
fn a_journal_of_another_session_or_image_is_none_and_without_its_own_the_image_is_an_error() {
    for (at, found) in [
        (DEVICE_AT, false),
        (BOOT_AT, false),
        (SESSION_AT, false),
        (63, true),
    ] {
        let files = killed();
        change_header(&files, at);
        for writable in [false, true] {
            let opened = files.open_as(&files.options().writable(writable));
            assert_eq!(opened.is_ok(), found, "byte {at}");
            if let Err(error) = opened {
                let said = error.to_string();
                assert!(said.contains("image-tool check -r all"), "{said}");
            }
        }
    }
    // The image that it is about is another one: this is a copy.
    let files = killed();
    let at = session_in_header(&files) + 31;
    files.image.state().bytes[at] ^= 1;
    let said = files.open_as(&files.options()).unwrap_err().to_string();
    assert!(said.contains("a copy of an image in use"), "{said}");
    // And none at all.
    let said = killed()
        .open_as(&OpenOptions::new(Format::Qcow2))
        .unwrap_err()
        .to_string();
    assert!(
        said.contains("in the journal journal, which is not in the folder"),
        "{said}"
    );
}

#[test]
fn a_journal_of_another_start_of_the_host_is_not_waited_for() {
    for is_there in [true, false] {
        let files = killed();
        let at = session_in_header(&files) + 8;
        files.image.state().bytes[at] ^= 1;
        change_header(&files, BOOT_AT + 7);
        if !is_there {
            files.journal.state().bytes.clear();
        }
        let image = files.open(1 << 20);
        is_sound(&image, "without the journal");
        assert_eq!(disk_of(&image)[0], 0);
        image.close().unwrap();
    }
}

#[test]
fn a_check_reports_a_journal_that_is_not_to_be_had_and_its_repair_goes_on_without() {
    let lose = |files: &Files| files.journal.state().bytes.clear();
    let damage = |files: &Files| files.journal.state().bytes[4096 + 24] ^= 1;
    for change in [&lose as &dyn Fn(&Files), &damage] {
        let files = killed();
        change(&files);
        let before = files.image.state().bytes.clone();
        for repair in [Repair::None, Repair::Leaks] {
            let options = files
                .options()
                .writable(repair != Repair::None)
                .for_check(true);
            let image = files.open_as(&options).unwrap();
            let found = image.check(repair).unwrap();
            assert_eq!((found.corruptions, found.leaks_fixed), (1, 0));
            assert!(
                found.messages[0].contains("journal"),
                "{:?}",
                found.messages
            );
            image.close().unwrap();
            assert!(
                files.image.state().bytes == before,
                "it still waits for its journal"
            );
        }
        let options = files.options().writable(true).for_check(true);
        let image = files.open_as(&options).unwrap();
        let found = image.check(Repair::All).unwrap();
        assert_eq!((found.corruptions, found.corruptions_fixed), (0, 1));
        image.close().unwrap();
        let image = files.open(1 << 20);
        is_sound(&image, "repaired");
        assert_eq!(disk_of(&image)[0], 0);
    }
}

/// Where groups of notes begin, as their words have it.
fn groups_in(journal: &[u8]) -> Vec<usize> {
    let word = |at: usize| u64::from_le_bytes(journal[at..at + 8].try_into().unwrap());
    let mut groups = Vec::new();
    for part in (4096..journal.len()).step_by(PART) {
        let (mut at, epoch) = (part, word(part));
        while epoch != 0 && at + 32 <= part + PART && word(at) == epoch {
            groups.push(at);
            at += 32 * (1 + (word(at + 16) & 0x7fff) as usize);
        }
    }
    groups
}

#[test]
fn damage_within_a_journal_is_an_error_and_a_torn_end_is_none() {
    let files = Files::made(4);
    let image = files.open(1 << 20);
    for number in 1..18u64 {
        let offset = number * 37 % SECTORS as u64 * SECTOR as u64;
        image
            .write_at(offset, &number.to_le_bytes().repeat(64))
            .unwrap();
        image.secure().unwrap();
        // What the first of these parts has is needed no more.
        if number == 5 {
            image.flush().unwrap();
        }
    }
    std::mem::forget(image);
    let left = files.again();
    let journal = left.journal.state().bytes.clone();
    let groups = groups_in(&journal);
    let last = *groups.last().unwrap();
    let needed = groups.iter().position(|at| *at >= 4096 + PART).unwrap();
    assert!(groups.len() - needed >= 12);
    let mut disks = Vec::new();
    let end = |at: usize| at + 32 * (1 + (journal[at + 16] as usize));
    for (index, at) in groups.iter().enumerate() {
        let is_in_pages = at % 4096 == 0 || at / 4096 != (end(*at) - 1) / 4096;
        // A bit of each of its words, and all of it.
        for change in [0, 16, 20, 33, 99] {
            let files = left.again();
            {
                let bytes = &mut files.journal.state().bytes;
                match change {
                    99 => bytes[*at..at + 64].fill(0),
                    change => bytes[at + change] ^= 1,
                }
            }
            let when = format!("group {index}, change {change}");
            match files.open_as(&files.options()) {
                Ok(image) => {
                    // As if the last one had never been written, or not all of its pages.
                    let may_be_torn = *at == last && (is_in_pages || matches!(change, 16 | 99));
                    assert!(index < needed || may_be_torn, "{when}");
                    disks.push(disk_of(&image));
                }
                Err(error) => {
                    assert!(index >= needed, "{when}");
                    assert!(error.to_string().contains("journal is damaged"), "{error}");
                }
            }
        }
    }
    let all = disk_of(&left.open_as(&left.options()).unwrap());
    let lost = |disk: &Vec<u64>| disk.iter().zip(&all).filter(|(a, b)| a != b).count();
    assert!(disks.iter().all(|disk| lost(disk) <= 1));
    let whole = disks.iter().filter(|disk| lost(disk) == 0).count();
    assert!(whole >= 5 * needed, "a damaged group that is not needed");
}

#[test]
fn a_journal_of_which_something_is_missing_is_an_error_that_names_it() {
    let shorten = |len: usize| move |files: &Files| files.journal.state().bytes.truncate(len);
    let changes: [&dyn Fn(&Files); 4] = [
        &shorten(0),
        &shorten(4096),
        &shorten(4096 + 3 * PART),
        &|files| files.journal.state().bytes[20] ^= 1,
    ];
    for change in changes {
        let files = killed();
        let before = files.image.state().bytes.clone();
        change(&files);
        for writable in [false, true] {
            let error = files
                .open_as(&files.options().writable(writable))
                .unwrap_err();
            assert!(error.to_string().contains("journal is damaged"), "{error}");
        }
        assert!(files.image.state().bytes == before);
    }
}

/// Puts a group of records into the journal in place of what there is.
fn forge(files: &Files, records: &[[u64; 4]]) {
    let mut state = files.journal.state();
    let session = u64::from_le_bytes(state.bytes[32..40].try_into().unwrap());
    let place = records.len() as u64;
    let mut words = vec![1, 0, place, 0];
    words.extend(records.iter().flatten());
    let bytes =
        |words: &[u64]| -> Vec<u8> { words.iter().flat_map(|word| word.to_le_bytes()).collect() };
    words[3] = checksum(session, &bytes(&words));
    state.bytes[4096..].fill(0);
    let bytes = bytes(&words);
    state.bytes[4096..4096 + bytes.len()].copy_from_slice(&bytes);
}

#[test]
fn records_that_do_not_fit_the_image_harm_nothing() {
    const L2: u64 = 2 << 8;
    const L1: u64 = 3 << 8;
    let files = killed();
    let image = files.open(1 << 20);
    image.write_at(64 << 10, &[5; 64 << 10]).unwrap();
    image.flush().unwrap();
    image.flush().unwrap();
    std::mem::forget(image);
    let sound = files.again();
    let disk = disk_of(&sound.open_as(&sound.options()).unwrap());
    let header = sound.image.state().bytes[..4096].to_vec();
    let l1 = u64::from_be_bytes(header[40..48].try_into().unwrap());
    let entry = {
        let bytes = &sound.image.state().bytes;
        u64::from_be_bytes(bytes[l1 as usize..][..8].try_into().unwrap())
    };
    let table = entry & 0x00ff_ffff_ffff_fe00;
    let cluster = 4096;
    let forgeries: Vec<Vec<[u64; 4]>> = vec![
        // The header given up; tables; all there is; what is in use.
        vec![[3, 0, 1, 1]],
        vec![[3, l1, 1, 1]],
        vec![[3, table, 1, 1]],
        vec![[3, cluster, u64::MAX, 1]],
        (1..40).map(|at| [3, at * cluster, 1, at]).collect(),
        // Words of the header, of the L1 table, of no table at all.
        vec![[1 | L2, 24, 0, u64::MAX]],
        vec![[1 | L1, l1, entry, cluster]],
        vec![[1 | L2, table, 0, 7 | 1 << 63]],
        vec![[1 | L2, !7, 0, 1]],
        vec![[1 | L2, 1 << 40, 0, 1]],
        // More memory than there should be.
        (1..1500u64)
            .map(|at| [2 | L2, (1 << 30) + at * cluster, cluster, 0])
            .collect(),
        vec![[2 | L2, 0, cluster, 0]],
        vec![[2 | L2, table, u64::MAX, 0]],
        // No kind of record, and a gap.
        vec![[9, 0, 0, 0]],
        vec![[5, 0, 0, 0], [1 | L2, 24, 0, 0]],
        vec![[4, 1, u64::MAX, 0], [3, cluster, 1, 1]],
    ];
    for (number, forgery) in forgeries.iter().enumerate() {
        for writable in [false, true] {
            let files = sound.again();
            forge(&files, forgery);
            let before = files.image.state().bytes.clone();
            match files.open_as(&files.options().writable(writable)) {
                Ok(image) => {
                    let found = image.check(Repair::None).unwrap();
                    assert_eq!(found.corruptions + found.check_errors, 0, "{number}");
                    assert!(disk_of(&image) == disk, "{number}");
                }
                Err(error) => {
                    assert!(error.to_string().contains("journal"), "{number}: {error}");
                    assert!(files.image.state().bytes == before, "{number}");
                }
            }
        }
    }
}

#[test]
fn random_records_do_no_more_than_leak() {
    let sound = killed();
    for seed in 0..300 {
        let mut rng = Rng(seed);
        let files = sound.again();
        let end = files.image.len().unwrap();
        let records: Vec<[u64; 4]> = (0..1 + rng.below(6))
            .map(|_| {
                let word = |rng: &mut Rng| match rng.below(4) {
                    0 => rng.below(8),
                    1 => rng.below(end / 512) * 512,
                    2 => rng.below(end) & !7,
                    _ => 1 << 63 | (rng.below(end / 4096) * 4096),
                };
                let kind = (1 + rng.below(5)) | rng.below(4) << 8;
                [kind, word(&mut rng), word(&mut rng), word(&mut rng)]
            })
            .collect();
        forge(&files, &records);
        if let Ok(image) = files.open_as(&files.options().writable(true)) {
            let found = image.check(Repair::None).unwrap();
            assert_eq!(
                found.corruptions + found.check_errors,
                0,
                "seed {seed}: {records:?}"
            );
        }
    }
}
