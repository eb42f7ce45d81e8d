//! Power cuts, and what is looked at after each.

use std::fmt;

use qcow::{Image, OpenOptions, Repair};

use crate::model::{Value, bytes_of_all, value_of};
use crate::peer::header::unknown;
use crate::peer::medium::{Event, Medium, SECTOR, apply};
use crate::peer::{self, Rng};
use crate::reference::Reference;
use crate::workload::{BASE, DATA, Workload};

/// The cuts of a run, and the medium up to where nothing can be lost any more.
pub(crate) struct Cuts {
    /// How many there were.
    pub(crate) points: usize,
    /// Images whose content qemu-img compared.
    compared: usize,
    pub(crate) reference: Reference,
    dirty: usize,
    leaking: usize,
    lives: usize,
    /// Kills of a process that keeps a journal.
    pub(crate) killed: usize,
    qemu_every: usize,
    /// The image, the external data file if there is one, and the journal if there is one.
    bases: Vec<Base>,
}

/// A file as far as nothing of it can be lost any more.
struct Base {
    bytes: Vec<u8>,
    /// Events of its record that are in `bytes`.
    events: usize,
}

impl fmt::Display for Cuts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} points: {} images dirty, {} leaking, {} written to again; {} kills of a process with a journal; qemu-img checked {} ({} different), compared {}",
            self.points,
            self.dirty,
            self.leaking,
            self.lives,
            self.killed,
            self.reference.asked,
            self.reference.different(),
            self.compared
        )
    }
}

/// Most points looked at after one operation.
const POINTS: usize = 6;

/// Which writes of the tail reach the medium. Nearly all and nearly none both find mistakes that a mean would not.
enum Choice {
    Percent(u64),
    Only(usize),
    AllBut(usize),
}

impl Choice {
    fn draw(rng: &mut Rng, events: usize) -> Self {
        let one = rng.below(events.max(1) as u64) as usize;
        match rng.below(4) {
            0 => Self::Only(one),
            1 => Self::AllBut(one),
            _ => Self::Percent(*rng.pick(&[10, 50, 90, 100])),
        }
    }

    fn takes(&self, index: usize, rng: &mut Rng) -> bool {
        match self {
            Self::Percent(percent) => rng.chance(*percent),
            Self::Only(one) => index == *one,
            Self::AllBut(one) => index != *one,
        }
    }
}

fn is_sync(event: &Event) -> bool {
    matches!(event, Event::Sync)
}

/// Any subset of the unsynced tail, in any order, each write torn at sector boundaries. The length of the file changes
/// in order: that is the file system's to keep.
fn survive(bytes: &mut Vec<u8>, tail: &[Event], rng: &mut Rng) {
    let choice = Choice::draw(rng, tail.len());
    let (shuffled, torn) = (rng.chance(40), rng.chance(60));
    let mut index = 0;
    for part in tail.split_inclusive(|event| matches!(event, Event::SetLen(_))) {
        let mut order: Vec<usize> = (0..part.len()).collect();
        if shuffled {
            let writes = part
                .iter()
                .filter(|event| matches!(event, Event::Write { .. }))
                .count();
            for last in (1..writes).rev() {
                order.swap(last, rng.below(last as u64 + 1) as usize);
            }
        }
        for at in order {
            if choice.takes(index + at, rng) {
                let torn = torn && rng.chance(50);
                apply(bytes, &part[at], torn.then_some(&mut *rng));
            }
        }
        index += part.len();
    }
}

/// What happened to a file since [`Base`], and when.
struct Tail {
    log: Vec<Event>,
    times: Vec<usize>,
}

impl Tail {
    fn of((medium, base): (&Medium, &Base)) -> Self {
        let state = medium.state();
        Self {
            log: state.log[base.events..].to_vec(),
            times: state.times[base.events..].to_vec(),
        }
    }

    fn syncs(&self) -> impl Iterator<Item = usize> + '_ {
        let syncs = self.log.iter().zip(&self.times);
        syncs
            .filter(|(event, _)| is_sync(event))
            .map(|(_, time)| *time)
    }

    /// What is on the medium if the power fails at `time`.
    fn survivor(&self, base: &Base, time: usize, rng: &mut Rng) -> Vec<u8> {
        let log = &self.log[..self.times.partition_point(|then| *then < time)];
        let synced = (log.iter().rposition(is_sync)).map_or(0, |sync| sync + 1);
        let mut bytes = base.bytes.clone();
        log[..synced]
            .iter()
            .for_each(|event| apply(&mut bytes, event, None));
        survive(&mut bytes, &log[synced..], rng);
        bytes
    }

    /// What the host has if a process is killed at `time`: of what that one was writing then, perhaps the first pages.
    fn at(&self, base: &Base, time: usize, rng: &mut Rng) -> Vec<u8> {
        let mut bytes = base.bytes.clone();
        for (event, then) in self.log.iter().zip(&self.times) {
            if *then < time {
                apply(&mut bytes, event, None);
            } else if let (Event::Write { offset, bytes: all }, true) = (event, *then == time) {
                let pages = rng.below(1 + (all.len() / 4096) as u64) as usize;
                let end = ((offset / 4096 + pages) * 4096).saturating_sub(*offset);
                let part = Event::Write {
                    offset: *offset,
                    bytes: all[..end.min(all.len())].to_vec(),
                };
                apply(&mut bytes, &part, None);
            }
        }
        bytes
    }

    /// Nothing up to the last sync can be lost any more.
    fn settle(&self, base: &mut Base) {
        if let Some(sync) = self.log.iter().rposition(is_sync) {
            self.log[..=sync]
                .iter()
                .for_each(|event| apply(&mut base.bytes, event, None));
            base.events += sync + 1;
        }
    }
}

/// Changes the boot id in the image's session, as if the host had been started again.
fn start_anew(image: &mut [u8]) {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let digits: String = id.chars().filter(char::is_ascii_hexdigit).collect();
    let id = u128::from_str_radix(&digits, 16).unwrap().to_be_bytes();
    let end = image.len().min(64 << 10);
    let mut at = 0;
    while let Some(found) = image[at..end].windows(16).position(|bytes| bytes == id) {
        image[at + found] ^= 1;
        at += found + 16;
    }
}

/// Media with these contents, which record no events.
pub(crate) fn media(files: &[Vec<u8>]) -> Vec<Medium> {
    let medium = |bytes: &Vec<u8>| {
        let medium = Medium::silent();
        medium.state().bytes.clone_from(bytes);
        medium
    };
    files.iter().map(medium).collect()
}

impl Cuts {
    pub(crate) fn new(qemu_every: usize) -> Self {
        Self {
            points: 0,
            compared: 0,
            reference: Reference::new(),
            dirty: 0,
            leaking: 0,
            lives: 0,
            killed: 0,
            qemu_every: qemu_every.max(1),
            bases: Vec::new(),
        }
    }

    /// What exists before the workload counts as durable.
    pub(crate) fn begin(&mut self, workload: &Workload) {
        let base = |medium: &Medium| {
            let state = medium.state();
            Base {
                bytes: state.bytes.clone(),
                events: state.log.len(),
            }
        };
        self.bases = workload.all().map(base).collect();
    }

    /// What happened to each file since nothing of it could be lost.
    fn tails(&self, workload: &Workload) -> Vec<Tail> {
        workload.all().zip(&self.bases).map(Tail::of).collect()
    }

    /// Each file as the host has it at that time.
    pub(crate) fn files_at(&self, workload: &Workload, time: usize, rng: &mut Rng) -> Vec<Vec<u8>> {
        let tails = self.tails(workload);
        let all = tails.iter().zip(&self.bases);
        all.map(|(tail, base)| tail.at(base, time, rng)).collect()
    }

    /// Power cuts at moments from `start` on.
    pub(crate) fn cut(&mut self, workload: &mut Workload, start: usize) {
        let end = workload.files[0].now();
        let tails = self.tails(workload);
        let syncs: Vec<usize> = (tails.iter().flat_map(Tail::syncs))
            .filter(|time| *time >= start)
            .chain([end])
            .collect();
        for _ in 0..(end - start + 1).min(POINTS) {
            let time = match workload.rng.chance(60) {
                // Also at the moment when most is unsynced.
                true => *workload.rng.pick(&syncs),
                false => start + workload.rng.below((end - start) as u64 + 1) as usize,
            };
            let mut files: Vec<Vec<u8>> = (tails.iter().zip(&self.bases))
                .map(|(tail, base)| tail.survivor(base, time, &mut workload.rng))
                .collect();
            files.truncate(workload.files.len());
            start_anew(&mut files[0]);
            self.points += 1;
            self.look_at(workload, files);
        }
        for (tail, base) in tails.iter().zip(&mut self.bases) {
            tail.settle(base);
        }
    }

    fn look_at(&mut self, workload: &mut Workload, files: Vec<Vec<u8>>) {
        let context = format!("seed {}, crash point {}", workload.seed, self.points);
        let media = media(&files);
        // A reader finds the right data without a repair.
        let content = look_at_content(workload, &media, &context);
        let dirty = is_dirty(&files[0]);
        if dirty && workload.rng.chance(30) {
            cut_repair(workload, &files, &content, &context);
        }
        if dirty {
            self.dirty += 1;
            let image = workload
                .open(&media, true)
                .unwrap_or_else(|error| panic!("{context}: {error}"));
            image.close().unwrap();
        }
        let leaks = check(&media[0], &context);
        self.leaking += usize::from(leaks > 0);
        if dirty {
            assert!(leaks == 0, "{context}: a repaired image leaks");
            let repaired = look_at_content(workload, &media, &context);
            assert!(content == repaired, "{context}: a repair changed the disk");
        }
        self.reference.ask(&files[0], dirty, &context);
        if self.points.is_multiple_of(self.qemu_every) {
            self.compared += 1;
            compare_with_qemu(workload, &files, &content, dirty, &context);
        }
        if workload.rng.chance(15) {
            self.lives += 1;
            live_on(workload, &files, content, &context);
        }
    }
}

/// The power fails again, while the image is repaired: what is left is as good as before.
fn cut_repair(workload: &mut Workload, files: &[Vec<u8>], content: &[u8], context: &str) {
    let medium = Medium::with(files[0].clone());
    let mut there = media(files);
    there[0] = medium.clone();
    workload.open(&there, true).unwrap().close().unwrap();
    let log = std::mem::take(&mut medium.state().log);
    let at = workload.rng.below(log.len() as u64 + 1) as usize;
    let tail = Tail {
        times: (0..log.len()).collect(),
        log,
    };
    let base = Base {
        bytes: files[0].clone(),
        events: 0,
    };
    let bytes = tail.survivor(&base, at, &mut workload.rng);
    there[0] = Medium::silent();
    there[0].state().bytes.clone_from(&bytes);
    let context = format!("{context}, cut again in its repair");
    assert!(
        look_at_content(workload, &there, &context) == content,
        "{context}: the disk changed"
    );
    if is_dirty(&bytes) {
        workload.open(&there, true).unwrap().close().unwrap();
    }
    check(&there[0], &context);
}

fn is_dirty(image: &[u8]) -> bool {
    image[7] >= 3 && image[79] & 1 == 1
}

/// Everything the image must hold; returns the disk.
pub(crate) fn look_at_content(workload: &mut Workload, files: &[Medium], context: &str) -> Vec<u8> {
    let image = workload
        .open(files, false)
        .unwrap_or_else(|error| panic!("{context}: {error}"));
    let mut disk = vec![0; image.virtual_size() as usize];
    image
        .read_at(0, &mut disk)
        .unwrap_or_else(|error| panic!("{context}: {error}"));
    let values = workload.model.check_disk(&disk, context);
    let info = image.info().unwrap();
    let facts = info.qcow2.unwrap();
    for bitmap in &facts.bitmaps {
        if !bitmap.in_use && bitmap.auto {
            let ranges: Vec<_> = image.bitmap_ranges(&bitmap.name).unwrap().collect();
            workload
                .model
                .check_bitmap(&bitmap.name, &values, &ranges, context);
        }
    }
    let names = [info.backing_filename, facts.data_file];
    workload.model.check_names(names, context);
    let kept = unknown(&files[0].state().bytes);
    assert!(
        kept == workload.unknown,
        "{context}: the unknown extension is {kept:?}"
    );
    if facts.data_file_raw {
        let raw = files[1].state();
        workload.model.check_raw(&raw.bytes, values.len(), context);
    }
    look_at_snapshots(workload, files, context);
    disk
}

pub(crate) fn look_at_snapshots(workload: &Workload, files: &[Medium], context: &str) {
    let there = workload.open(files, false).unwrap().snapshots().unwrap();
    for (name, snapshot) in &workload.model.snapshots {
        if !there.iter().any(|there| there.name == *name) {
            let fresh = workload.model.fresh.as_ref() == Some(name);
            assert!(fresh, "{context}: snapshot {name} is gone");
            continue;
        }
        let options = OpenOptions::new(qcow::Format::Qcow2).snapshot(Some(name.clone()));
        let old = Image::open_storage(Box::new(files[0].clone()), "crash", &options)
            .unwrap_or_else(|error| panic!("{context}: {error}"));
        let old = workload.over_backing(old);
        let mut disk = vec![0; old.virtual_size() as usize];
        old.read_at(0, &mut disk).unwrap();
        assert!(
            disk == snapshot.bytes,
            "{context}: snapshot {name} is not what it was"
        );
    }
}

/// Panics if the image is corrupt; returns the number of leaked clusters.
pub(crate) fn check(medium: &Medium, context: &str) -> u64 {
    let options = OpenOptions::new(qcow::Format::Qcow2).for_check(true);
    let image = Image::open_storage(Box::new(medium.clone()), "crash", &options);
    let found = image
        .unwrap_or_else(|error| panic!("{context}: {error}"))
        .check(Repair::None)
        .unwrap();
    let bad = (found.corruptions, found.check_errors);
    assert_eq!(bad, (0, 0), "{context}: {:?}", found.messages);
    found.leaks
}

/// qemu-img reads the same disk from the image.
fn compare_with_qemu(
    workload: &Workload,
    files: &[Vec<u8>],
    content: &[u8],
    repairs: bool,
    context: &str,
) {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| std::fs::write(dir.path().join(name), bytes).unwrap();
    write("crash.qcow2", &files[0]);
    write("disk", content);
    write(BASE, &workload.backing_content().unwrap_or_default());
    write(DATA, files.get(1).map_or(&[], |data| data));
    let qemu_img = |args: &[&str]| peer::run_in(dir.path(), "qemu-img", args);
    if repairs {
        qemu_img(&["check", "-q", "-r", "all", "crash.qcow2"]);
    }
    let compared = qemu_img(&["compare", "-f", "qcow2", "-F", "raw", "crash.qcow2", "disk"]);
    assert!(
        compared.status.success(),
        "{context}: qemu-img compare: {compared:?}"
    );
}

/// The image is used again, without having been checked: nothing that was there may suffer.
fn live_on(workload: &mut Workload, files: &[Vec<u8>], mut disk: Vec<u8>, context: &str) {
    let media = media(files);
    let image = workload
        .open(&media, true)
        .unwrap_or_else(|error| panic!("{context}: {error}"));
    let sectors = disk.len() / SECTOR;
    for turn in 0..6 {
        let start = workload.rng.below(sectors as u64) as usize;
        let end = (start + 1 + workload.rng.below(20) as usize).min(sectors);
        let range = start * SECTOR..end * SECTOR;
        let values: Vec<Value> = (start..end)
            .map(|sector| turn << 56 | sector as Value)
            .collect();
        let fresh = match turn % 3 {
            0 => vec![0; range.len()],
            _ => bytes_of_all(&values),
        };
        match turn % 3 {
            0 => image
                .write_zeroes(range.start as u64, range.len() as u64, true)
                .unwrap(),
            _ => image.write_at(range.start as u64, &fresh).unwrap(),
        }
        disk[range].copy_from_slice(&fresh);
    }
    image.close().unwrap();
    let image = workload.open(&media, false).unwrap();
    let mut found = vec![0; disk.len()];
    image.read_at(0, &mut found).unwrap();
    let differs = found
        .chunks(SECTOR)
        .zip(disk.chunks(SECTOR))
        .position(|(found, wanted)| found != wanted);
    assert_eq!(
        differs,
        None,
        "{context}: in the life after, this sector is wrong: {:x?}",
        differs.map(|at| value_of(&found[at * SECTOR..][..SECTOR]))
    );
    look_at_snapshots(workload, &media, context);
    check(&media[0], context);
}
