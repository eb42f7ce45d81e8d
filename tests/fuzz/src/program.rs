//! Operations, and an image that they are done to.

use std::sync::Arc;

use qcow::{Format, Image, Journal, OpenOptions, Preallocation};

use crate::host::Host;
use crate::memory::Memory;
use crate::model::{Model, Now};

/// The longest single read or write, so that a step stays cheap.
const LONGEST: u64 = 64 << 10;
/// The largest disk an image is resized to: a table of megabytes in clusters of 512 bytes takes longer than a fuzzer waits.
pub(crate) const LARGEST: u64 = 64 << 20;
/// Kinds of change.
pub const KINDS: u8 = 34;
/// One operation on an image.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// Which one.
    pub kind: u8,
    /// With what.
    pub fill: u8,
    /// Where.
    pub place: u32,
    /// How much.
    pub len: u16,
}

impl Step {
    /// Bytes of one.
    pub const LEN: usize = 8;

    /// The operation that these bytes are.
    pub fn new(bytes: &[u8]) -> Self {
        Self {
            kind: bytes[0],
            fill: bytes[1],
            place: u32::from_le_bytes([bytes[2], bytes[3], bytes[4], bytes[5]]),
            len: u16::from_le_bytes([bytes[6], bytes[7]]),
        }
    }

    /// Where in the disk, and how much: dense at the front for small places, spread over all of it for large ones.
    pub(crate) fn range(self, size: u64) -> (u64, u64) {
        let place = u64::from(self.place);
        let offset = if self.place < 1 << 24 {
            place
        } else {
            place.wrapping_mul(size / 0xffff_ffff + 1)
        };
        let offset = offset.checked_rem(size).unwrap_or(0);
        (offset, u64::from(self.len).min(size - offset).min(LONGEST))
    }

    /// Reads. An error is as good as data; a panic is not.
    pub fn read(self, image: &Image) {
        let (offset, len) = self.range(image.virtual_size());
        let mut buffer = vec![0; len as usize];
        let _ = image.read_at(offset, &mut buffer);
        let _ = image.map(offset, len.max(1));
    }
}

/// An image that is written, what it must hold if it was sound, and what becomes of it.
pub struct Session<'a> {
    pub(crate) host: &'a Host,
    options: OpenOptions,
    pub(crate) image: Image,
    pub(crate) sound: bool,
    /// It may be that two places of the disk lie in one cluster.
    pub(crate) shares: bool,
    pub(crate) model: Option<Model>,
    pub(crate) journal: Option<Memory>,
}

impl<'a> Session<'a> {
    /// Opens the image for writing, by what [`crate::input::Input::writable`] says. One that was sound is followed.
    pub fn open(host: &'a Host, options: OpenOptions, sound: bool) -> Option<Self> {
        let image = host.open(options.clone()).ok()?;
        let sound = sound && !host.overlaps();
        let model = sound.then(|| Model::of(&image)).flatten();
        Some(Self {
            host,
            options,
            image,
            sound,
            shares: false,
            model,
            journal: None,
        })
    }

    /// As [`Session::open`], of an image in which two places may lie in one cluster, as a repair leaves them.
    pub fn open_shared(host: &'a Host, options: OpenOptions, sound: bool) -> Option<Self> {
        let session = Self::open(host, options, sound)?;
        Some(Self {
            shares: true,
            ..session
        })
    }

    /// The image.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// Whether nothing is wrong with the image, and nobody has been told lies about it.
    pub fn is_sound(&self) -> bool {
        self.sound
    }

    /// Closes the image, and looks whether a new reader finds what must be there. False if it could not be closed.
    pub fn close(mut self) -> bool {
        // Who was about to write and found damage writes no more, and what was not flushed until then is lost.
        if self.image.flush().is_err() {
            self.model = None;
        }
        if let Some(model) = &self.model {
            model.compare(&self.image);
        }
        let host = self.host;
        let (image, left) = self.leave();
        let closed = image.close().is_ok();
        if host.file.is_spent() {
            let again = left.enter();
            return again.is_some_and(|session| session.image.close().is_ok());
        }
        if !closed {
            return false;
        }
        host.file.all();
        let Some(model) = left.model else {
            return true;
        };
        let read = |options| host.open(options).expect("an image that was closed");
        model.compare(&read(OpenOptions::new(Format::Qcow2)));
        for (name, disk) in &model.snapshots {
            let options = OpenOptions::new(Format::Qcow2).snapshot(Some(name.clone()));
            disk.compare(&read(options), name);
        }
        true
    }

    /// Changes the image in one of the ways there are. False if it is gone.
    pub fn change(mut self, step: Step) -> Option<Self> {
        let name = format!("n{}", step.fill % 3);
        let (offset, len) = step.range(self.image.virtual_size());
        let range = offset..offset + len;
        let image = &self.image;
        match step.kind % KINDS {
            0..=4 => {
                let bytes: Vec<u8> = (0..len).map(|at| step.fill ^ (at / 256) as u8).collect();
                let done = image.write_at(offset, &bytes).is_ok();
                self.wrote(range, done, &Now::Bytes(&bytes));
            }
            5 | 6 => {
                let done = image.write_zeroes(offset, len, step.fill & 1 != 0).is_ok();
                self.wrote(range, done, &Now::Zero);
            }
            7 => {
                let done = image.discard(offset, len).is_ok();
                if let Some(model) = &mut self.model {
                    match done {
                        true => model.discarded(image, range),
                        false => model.write(range, &Now::Unknown),
                    }
                }
            }
            8 => self.compress(step),
            9 => drop(image.flush()),
            10 => return self.reopen(),
            11 => self.snapshot_create(&name),
            12 => self.snapshot_apply(&name, step),
            13 => self.snapshot_delete(&name, step),
            14 => self.resize(image.virtual_size().saturating_add(len * 512)),
            15 => self.resize(offset),
            16 => self.bitmap_add(&name, step),
            17 => self.bitmap_change(&name, step),
            18 => drop(image.set_version(2 + u32::from(step.fill & 1))),
            19 => drop(image.set_refcount_bits(1 << (step.fill % 7))),
            20 => drop(image.set_lazy_refcounts(step.fill & 1 != 0)),
            21 => {
                if image.backing().is_some() {
                    let _ = image.make_empty();
                    self.reload();
                }
            }
            22 => {
                let format = (step.fill & 2 != 0).then_some(Format::Raw);
                if image.backing().is_some() {
                    let _ = image.change_backing_file(Some("elsewhere"), format);
                }
            }
            24 => self.bitmap_merge(&name, step),
            25 => self.resize_with_space(step),
            26 => self.check(step),
            27 => self.snapshot_of_any_name(step),
            28 => return self.flatten(),
            29 => return self.keep_journal(step),
            30 => return self.kill(step),
            31 => self.by_plan(step),
            32 => {
                let _ = image.set_data_file_name("another");
                let _ = image.clear_data_file_raw();
            }
            33 => self.fail_after(step.len % 256),
            _ => step.read(image),
        }
        Some(self)
    }

    /// So many changes of the file are made, then all fail until the image is opened again. What it holds then is not followed.
    fn fail_after(&mut self, changes: u16) {
        self.host.file.only(changes.into());
        self.model = None;
    }

    pub(crate) fn wrote(&mut self, range: std::ops::Range<u64>, done: bool, now: &Now<'_>) {
        if let Some(model) = &mut self.model {
            model.write(range, if done { now } else { &Now::Unknown });
        }
    }

    pub(crate) fn reload(&mut self) {
        let image = &self.image;
        self.model = self
            .model
            .take()
            .and_then(|mut model| model.reload(image).map(|()| model));
    }

    pub(crate) fn reopen(self) -> Option<Self> {
        let (image, left) = self.leave();
        let closed = image.close().is_ok();
        let cut_off = left.host.file.is_spent();
        (cut_off || closed).then(|| left.enter()).flatten()
    }

    /// Lets go of the image, which must be opened again by [`Left::enter`].
    pub(crate) fn leave(self) -> (Image, Left<'a>) {
        let left = Left {
            host: self.host,
            options: self.options,
            sound: self.sound,
            shares: self.shares,
            model: self.model,
            journal: self.journal,
        };
        (self.image, left)
    }

    fn compress(&mut self, step: Step) {
        let cluster = self.image.cluster_size().unwrap_or(512);
        let size = self.image.virtual_size();
        let (offset, _) = step.range(size);
        let offset = offset / cluster * cluster;
        let len = cluster.min(size - offset);
        if len > LONGEST {
            return;
        }
        let bytes: Vec<u8> = (0..len)
            .map(|at| {
                step.fill
                    .wrapping_mul((at / u64::from(step.len).max(1)) as u8)
            })
            .collect();
        let done = self.image.write_compressed(offset, &bytes).is_ok();
        self.wrote(offset..offset + len, done, &Now::Bytes(&bytes));
    }

    /// Whether a snapshot has this name, or is found by it because it is its id.
    fn has_snapshot(&self, name: &str) -> bool {
        let snapshots = self.image.snapshots().unwrap_or_default();
        snapshots
            .iter()
            .any(|one| one.name == name || one.id == name)
    }

    fn snapshot_create(&mut self, name: &str) {
        if self.has_snapshot(name) || self.image.snapshot_create(name).is_err() {
            return;
        }
        if let Some(model) = &mut self.model {
            model.keep(name);
        }
    }

    fn snapshot_apply(&mut self, name: &str, step: Step) {
        let name = old_or_new(name, step);
        let done = self.image.snapshot_apply(name).is_ok();
        let followed = self.model.as_mut().is_some_and(|model| {
            // Taken with another size of the disk than the file records, nobody knows it; such are not among ours.
            done && model.restore(name)
        });
        if !followed {
            self.reload();
            if let Some(model) = &mut self.model {
                model.bitmaps.clear();
            }
        }
    }

    fn snapshot_delete(&mut self, name: &str, step: Step) {
        let name = old_or_new(name, step);
        let _ = self.image.snapshot_delete(name);
        if let Some(model) = &mut self.model {
            model.snapshots.remove(name);
        }
    }

    fn resize(&mut self, size: u64) {
        self.resize_to(size % LARGEST / 512 * 512, Preallocation::Off);
    }

    pub(crate) fn resize_to(&mut self, size: u64, preallocation: Preallocation) {
        let done = self.image.resize(size, preallocation).is_ok();
        let Some(mut model) = self.model.take() else {
            return;
        };
        let known = match done {
            true => model.resize(size),
            false => model.reload(&self.image),
        };
        self.model = known.map(|()| model);
    }

    fn bitmap_add(&mut self, name: &str, step: Step) {
        let granularity = 512 << (step.len % 12);
        let enabled = step.fill & 4 != 0;
        let added = self.image.bitmap_add(name, Some(granularity), enabled);
        if let (Ok(()), true, Some(model)) = (added, enabled, &mut self.model) {
            model.bitmaps.insert(name.to_owned(), Vec::new());
        }
    }

    fn bitmap_change(&mut self, name: &str, step: Step) {
        let image = &self.image;
        match step.len % 4 {
            0 => drop(image.bitmap_remove(name)),
            1 => drop(image.bitmap_clear(name)),
            2 => drop(image.bitmap_enable(name, step.fill & 4 != 0)),
            _ => {
                if let Ok(ranges) = image.bitmap_ranges("all") {
                    let _ = image.bitmap_merge(name, ranges);
                }
                return;
            }
        }
        if let Some(model) = &mut self.model {
            model.bitmaps.remove(name);
        }
    }
}

/// What there is of a session between two times that the image is open.
pub(crate) struct Left<'a> {
    pub(crate) host: &'a Host,
    options: OpenOptions,
    pub(crate) sound: bool,
    shares: bool,
    pub(crate) model: Option<Model>,
    pub(crate) journal: Option<Memory>,
}

impl<'a> Left<'a> {
    /// Opens the image again. One that was sound can be, unless two tables of different kinds are one: no check tells of that, but who is
    /// about to write notices, and marks the image. A limit of changes ends here, also one that was just enough.
    pub(crate) fn enter(self) -> Option<Session<'a>> {
        self.host.file.all();
        let options = match &self.journal {
            Some(journal) => {
                let journal = Journal::Use(Arc::new(journal.clone()));
                self.options.clone().journal(journal)
            }
            None => self.options.clone(),
        };
        let image = match self.host.open(options) {
            Ok(image) => image,
            Err(error) if self.sound && !self.host.is_marked_corrupt() => {
                panic!("a sound image cannot be opened again: {error}")
            }
            Err(_) => return None,
        };
        Some(Session {
            host: self.host,
            options: self.options,
            image,
            sound: self.sound,
            shares: self.shares,
            model: self.model,
            journal: self.journal,
        })
    }
}

/// Some work is on snapshots that the image came with.
fn old_or_new(name: &str, step: Step) -> &str {
    match step.len % 4 {
        0 => "first",
        1 => "second",
        _ => name,
    }
}
