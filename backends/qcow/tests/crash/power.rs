//! Power cuts, and what is looked at after each.

use std::fmt;

use qcow::{Image, OpenOptions, Repair};

use crate::model::{Value, bytes_of_all, value_of};
use crate::peer::medium::{Event, Medium, SECTOR, apply};
use crate::peer::{self, Rng};
use crate::reference::Reference;
use crate::workload::Workload;

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
    qemu_every: usize,
    base: Vec<u8>,
    /// Events of the record that are in `base`.
    base_at: usize,
}

impl fmt::Display for Cuts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} points: {} images dirty, {} leaking, {} written to again; qemu-img checked {} ({} different), compared {}",
            self.points,
            self.dirty,
            self.leaking,
            self.lives,
            self.reference.asked,
            self.reference.different(),
            self.compared
        )
    }
}

/// Most points looked at after one operation.
const POINTS: u64 = 6;

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

/// Any subset of the unsynced tail, in any order, each write torn at sector boundaries. The length of the file changes in order:
/// that is the file system's to keep.
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

impl Cuts {
    pub(crate) fn new(qemu_every: usize) -> Self {
        Self {
            points: 0,
            compared: 0,
            reference: Reference::new(),
            dirty: 0,
            leaking: 0,
            lives: 0,
            qemu_every: qemu_every.max(1),
            base: Vec::new(),
            base_at: 0,
        }
    }

    /// What is there before a workload is on the medium.
    pub(crate) fn begin(&mut self, workload: &Workload) {
        let state = workload.medium.state();
        self.base_at = state.log.len();
        self.base = state.bytes.clone();
    }

    /// Power cuts at points of the record from `start` on.
    pub(crate) fn cut(&mut self, workload: &mut Workload, start: usize) {
        let log: Vec<Event> = workload.medium.state().log[self.base_at..].to_vec();
        let first = start - self.base_at;
        let syncs: Vec<usize> = (first..log.len())
            .filter(|at| is_sync(&log[*at]))
            .chain([log.len()])
            .collect();
        let count = (log.len() - first + 1).min(POINTS as usize);
        for _ in 0..count {
            let at = match workload.rng.chance(60) {
                // As late as the tail is longest.
                true => *workload.rng.pick(&syncs),
                false => first + workload.rng.below((log.len() - first) as u64 + 1) as usize,
            };
            let synced = log[..at]
                .iter()
                .rposition(is_sync)
                .map_or(0, |sync| sync + 1);
            let mut bytes = self.base.clone();
            log[..synced]
                .iter()
                .for_each(|event| apply(&mut bytes, event, None));
            survive(&mut bytes, &log[synced..at], &mut workload.rng);
            self.points += 1;
            self.look_at(workload, bytes);
        }
        if let Some(sync) = log.iter().rposition(is_sync) {
            log[..=sync]
                .iter()
                .for_each(|event| apply(&mut self.base, event, None));
            self.base_at += sync + 1;
        }
    }

    fn look_at(&mut self, workload: &mut Workload, bytes: Vec<u8>) {
        let context = format!("seed {}, crash point {}", workload.seed, self.points);
        let medium = Medium::silent();
        medium.state().bytes.clone_from(&bytes);
        // Whoever reads it as it is finds the right data.
        let content = look_at_content(workload, &medium, &context);
        let dirty = is_dirty(&bytes);
        let repairs = dirty || workload.flags_may_lag;
        if dirty && workload.rng.chance(30) {
            cut_repair(workload, &bytes, &content, &context);
        }
        if dirty {
            self.dirty += 1;
            let image = workload
                .open(&medium, true)
                .unwrap_or_else(|error| panic!("{context}: {error}"));
            image.close().unwrap();
        } else if workload.flags_may_lag {
            repair_flags(&medium, &context);
        }
        let leaks = check(&medium, &context);
        self.leaking += usize::from(leaks > 0);
        assert!(leaks == 0 || !repairs, "{context}: a repaired image leaks");
        if repairs {
            let repaired = look_at_content(workload, &medium, &context);
            assert!(content == repaired, "{context}: a repair changed the disk");
        }
        self.reference.ask(&bytes, repairs, &context);
        if self.points.is_multiple_of(self.qemu_every) {
            self.compared += 1;
            compare_with_qemu(workload, &bytes, &content, repairs, &context);
        }
        if workload.rng.chance(15) {
            self.lives += 1;
            live_on(workload, &bytes, content, &context);
        }
    }
}

/// The power fails again, while the image is repaired: what is left is as good as before.
fn cut_repair(workload: &mut Workload, bytes: &[u8], content: &[u8], context: &str) {
    let medium = Medium::with(bytes.to_vec());
    let image = workload.open(&medium, true).unwrap();
    image.close().unwrap();
    let log = std::mem::take(&mut medium.state().log);
    let at = workload.rng.below(log.len() as u64 + 1) as usize;
    let synced = (log[..at].iter().rposition(is_sync)).map_or(0, |sync| sync + 1);
    let mut bytes = bytes.to_vec();
    (log[..synced].iter()).for_each(|event| apply(&mut bytes, event, None));
    survive(&mut bytes, &log[synced..at], &mut workload.rng);
    let medium = Medium::silent();
    medium.state().bytes.clone_from(&bytes);
    let context = format!("{context}, cut again in its repair");
    assert!(
        look_at_content(workload, &medium, &context) == content,
        "{context}: the disk changed"
    );
    if is_dirty(&bytes) {
        workload.open(&medium, true).unwrap().close().unwrap();
    }
    check(&medium, &context);
}

fn is_dirty(image: &[u8]) -> bool {
    image[7] >= 3 && image[79] & 1 == 1
}

/// Everything the image must hold; returns the disk.
fn look_at_content(workload: &mut Workload, medium: &Medium, context: &str) -> Vec<u8> {
    let image = workload
        .open(medium, false)
        .unwrap_or_else(|error| panic!("{context}: {error}"));
    let mut disk = vec![0; image.virtual_size() as usize];
    image
        .read_at(0, &mut disk)
        .unwrap_or_else(|error| panic!("{context}: {error}"));
    let values = workload.model.check_disk(&disk, context);
    for bitmap in image.info().unwrap().qcow2.unwrap().bitmaps {
        if !bitmap.in_use && bitmap.auto {
            let ranges = image.bitmap_ranges(&bitmap.name).unwrap();
            workload
                .model
                .check_bitmap(&bitmap.name, &values, &ranges, context);
        }
    }
    look_at_snapshots(workload, medium, context);
    disk
}

fn look_at_snapshots(workload: &Workload, medium: &Medium, context: &str) {
    let there = workload.open(medium, false).unwrap().snapshots().unwrap();
    for (name, snapshot) in &workload.model.snapshots {
        if !there.iter().any(|there| there.name == *name) {
            let fresh = workload.model.fresh.as_ref() == Some(name);
            assert!(fresh, "{context}: snapshot {name} is gone");
            continue;
        }
        let options = OpenOptions::new(qcow::Format::Qcow2)
            .backing(workload.backing())
            .snapshot(Some(name.clone()));
        let old = Image::open_storage(Box::new(medium.clone()), "crash", &options)
            .unwrap_or_else(|error| panic!("{context}: {error}"));
        let mut disk = vec![0; old.virtual_size() as usize];
        old.read_at(0, &mut disk).unwrap();
        assert!(
            disk == snapshot.bytes,
            "{context}: snapshot {name} is not what it was"
        );
    }
}

/// No corruptions; returns how much leaks.
fn check(medium: &Medium, context: &str) -> u64 {
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

/// Refcounts and flags are in different clusters: without a bit that says so, one can be ahead of the other. No refcount may be too low.
fn repair_flags(medium: &Medium, context: &str) {
    let options = OpenOptions::new(qcow::Format::Qcow2)
        .for_check(true)
        .writable(true);
    let image = Image::open_storage(Box::new(medium.clone()), "crash", &options).unwrap();
    let found = image.check(Repair::All).unwrap();
    for message in &found.messages {
        let harmless = message.contains("OFLAG_COPIED") || is_leak(message);
        assert!(harmless, "{context}: {message}");
    }
    image.close().unwrap();
}

/// Whether a message of a repair is about a refcount that was too high.
fn is_leak(message: &str) -> bool {
    let number = |key: &str| -> Option<u64> {
        message
            .split(' ')
            .find_map(|word| word.strip_prefix(key))?
            .parse()
            .ok()
    };
    matches!((number("refcount="), number("reference=")), (Some(stored), Some(counted)) if stored > counted)
}

/// QEMU finds the same disk in the image.
fn compare_with_qemu(workload: &Workload, bytes: &[u8], content: &[u8], repairs: bool, context: &str) {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    let (path, disk) = (file("crash.qcow2"), file("disk"));
    std::fs::write(&path, bytes).unwrap();
    std::fs::write(&disk, content).unwrap();
    std::fs::write(file("base"), workload.backing_content().unwrap_or_default()).unwrap();
    let (path, disk) = (peer::text(&path), peer::text(&disk));
    if repairs {
        peer::run("qemu-img", &["check", "-q", "-r", "all", path]);
    }
    let compared = peer::run(
        "qemu-img",
        &["compare", "-f", "qcow2", "-F", "raw", path, disk],
    );
    assert!(
        compared.status.success(),
        "{context}: qemu-img compare: {compared:?}"
    );
}

/// The image is used again, without having been checked: nothing that was there may suffer.
fn live_on(workload: &mut Workload, bytes: &[u8], mut disk: Vec<u8>, context: &str) {
    let medium = Medium::silent();
    medium.state().bytes = bytes.to_vec();
    let image = workload
        .open(&medium, true)
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
    let image = workload.open(&medium, false).unwrap();
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
    look_at_snapshots(workload, &medium, context);
    if workload.flags_may_lag {
        repair_flags(&medium, context);
    }
    check(&medium, context);
}
