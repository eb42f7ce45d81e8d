//! An image and its journal, what is written to them, and what is left of them.

use std::ops::Range;
use std::sync::Arc;

use qcow::{Discard, Format, Image, Journal, OpenOptions, Repair};

use crate::peer::Rng;
use crate::peer::medium::{Event, Medium, SECTOR, apply};

pub(crate) const SECTORS: usize = 2048;
pub(crate) const PART: usize = 512 << 10;

/// An image and the journal beside it, on one clock; both outlive the process.
#[derive(Clone)]
pub(crate) struct Files {
    pub(crate) image: Medium,
    pub(crate) journal: Medium,
}

impl Files {
    pub(crate) fn new(image: Vec<u8>, journal: Vec<u8>) -> Self {
        let image = Medium::with(image);
        let beside = image.beside();
        beside.state().bytes = journal;
        Self {
            image,
            journal: beside,
        }
    }

    /// A new image, and nothing beside it.
    pub(crate) fn made(seed: u64) -> Self {
        let medium = Medium::small_clusters(seed, (SECTORS * SECTOR) as u64);
        let bytes = medium.state().bytes.clone();
        Self::new(bytes, Vec::new())
    }

    /// As they are now.
    pub(crate) fn again(&self) -> Self {
        let bytes = |medium: &Medium| medium.state().bytes.clone();
        Self::new(bytes(&self.image), bytes(&self.journal))
    }

    /// How much has happened.
    pub(crate) fn now(&self) -> usize {
        self.image.now()
    }

    pub(crate) fn options(&self) -> OpenOptions {
        OpenOptions::new(Format::Qcow2)
            .discard(Discard::Unmap)
            .journal(Journal::Use(Arc::new(self.journal.clone())))
    }

    pub(crate) fn open_as(&self, options: &OpenOptions) -> qcow::Result<Image> {
        Image::open_storage(Box::new(self.image.clone()), "disk", options)
    }

    pub(crate) fn open(&self, cache_bytes: usize) -> Image {
        let options = self.options().writable(true).cache_bytes(cache_bytes);
        let image = self.open_as(&options).unwrap();
        assert!(image.has_journal());
        image
    }

    /// What there was after `moment` things had happened to what `start` was; what happened next may be there in part.
    pub(crate) fn at_moment(&self, start: &Self, moment: usize, rng: &mut Rng) -> Self {
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
pub(crate) struct Done {
    pub(crate) sectors: Range<usize>,
    pub(crate) value: u64,
    pub(crate) begun: usize,
    pub(crate) done: usize,
}

/// Writes these numbers, zeroes and flushes: data so many times of a hundred, and flushes so many.
pub(crate) fn write(
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
        // As a server must before it completes the guest's request.
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

pub(crate) fn value_of(sector: &[u8]) -> u64 {
    let value = u64::from_le_bytes(sector[..8].try_into().unwrap());
    assert!(sector.chunks(8).all(|chunk| chunk == value.to_le_bytes()));
    value
}

/// What each sector holds.
pub(crate) fn disk_of(image: &Image) -> Vec<u64> {
    let mut disk = vec![0; SECTORS * SECTOR];
    image.read_at(0, &mut disk).unwrap();
    disk.chunks(SECTOR).map(value_of).collect()
}

pub(crate) fn is_sound(image: &Image, when: &str) {
    let found = image.check(Repair::None).unwrap();
    let what = (found.corruptions + found.check_errors, found.leaks);
    assert_eq!(what, (0, 0), "{when}: {:?}", found.messages);
}

/// An image with a write that only its journal knows of.
pub(crate) fn killed() -> Files {
    let files = Files::made(2);
    let image = files.open(1 << 20);
    image.write_at(0, &[7; 4096]).unwrap();
    image.secure().unwrap();
    std::mem::forget(image);
    files.again()
}

/// Words of the journal's header, whose last one is their checksum.
pub(crate) const SESSION_AT: usize = 32;
pub(crate) const DEVICE_AT: usize = 16;
pub(crate) const BOOT_AT: usize = 40;

pub(crate) fn change_header(files: &Files, at: usize) {
    let mut state = files.journal.state();
    state.bytes[at] ^= 1;
    let sum = checksum(0, &state.bytes[..56]);
    state.bytes[56..64].copy_from_slice(&sum.to_le_bytes());
}

/// As the journal's documentation has it.
pub(crate) fn checksum(session: u64, bytes: &[u8]) -> u64 {
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
pub(crate) fn session_in_header(files: &Files) -> usize {
    let bytes = files.image.state().bytes[..4096].to_vec();
    bytes.windows(4).position(|kind| kind == b"BHJL").unwrap() + 8
}

/// The version that the journal's header has.
pub(crate) fn set_version(files: &Files, version: u8) {
    let mut state = files.journal.state();
    state.bytes[8] = version;
    let sum = checksum(0, &state.bytes[..56]);
    state.bytes[56..64].copy_from_slice(&sum.to_le_bytes());
}

/// Where the image says how far its journal has got.
pub(crate) fn progress_at(files: &Files) -> usize {
    (1 << files.image.state().bytes[23]) - 32
}

/// Has the image say that the journal has so many groups, or nothing.
pub(crate) fn set_progress(files: &Files, groups: Option<u32>) {
    let at = progress_at(files);
    let place = &mut files.image.state().bytes[at..at + 32];
    match groups {
        Some(groups) => {
            place[16..20].copy_from_slice(&groups.to_be_bytes());
            place[20..24].copy_from_slice(&groups.to_be_bytes());
        }
        None => place.fill(0),
    }
}

/// Each sector of the disk holds what was last written before that moment, or what was being written then.
pub(crate) fn holds(disk: &[u64], done: &[Done], moment: usize, when: &str) {
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
}
