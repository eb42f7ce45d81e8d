//! What is on the medium after a power cut.
//!
//! A random workload runs on a medium that records every write and sync. Then the power fails, at many points of the record: all
//! before the last sync is on the medium; of what came after, any subset, each write torn at sector boundaries. Every
//! such image must be consistent or leak clusters only (an image that is marked dirty: once it is repaired), hold what was flushed,
//! and in every sector written since, what was flushed or one of the values written since. Snapshots taken must read as they were.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod peer;

use std::collections::BTreeMap;
use std::sync::Arc;

use peer::Rng;
use peer::medium::{Event, Medium, SECTOR, apply};
use qcow::{
    Backing, CompressionType, CreateOptions, ErrorKind, Format, Image, OpenOptions, Preallocation,
    Repair,
};

type Sector = [u8; SECTOR];

/// The values each sector may have after a crash, by its number. Beyond these, what the backing image holds, or zeroes.
struct Model {
    now: Vec<Sector>,
    allowed: Vec<Vec<Sector>>,
    sizes: Vec<usize>,
    snapshots: BTreeMap<String, Vec<Sector>>,
    /// The snapshot that the present operation takes: it may not be there yet.
    fresh: Option<String>,
}

impl Model {
    fn new(disk: Vec<Sector>) -> Self {
        let allowed = disk.iter().map(|sector| vec![*sector]).collect();
        Self {
            sizes: vec![disk.len()],
            now: disk,
            allowed,
            snapshots: BTreeMap::new(),
            fresh: None,
        }
    }

    fn set(&mut self, sector: usize, value: Sector) {
        self.now[sector] = value;
        self.allowed[sector].push(value);
    }

    /// Everything up to now is on the medium.
    fn flushed(&mut self) {
        self.sizes = vec![self.now.len()];
        self.allowed.truncate(self.now.len());
        for (allowed, now) in self.allowed.iter_mut().zip(&self.now) {
            *allowed = vec![*now];
        }
    }

    fn resize(&mut self, sectors: usize) {
        self.sizes.push(sectors);
        // What is cut off may be gone before the size changes; what is added reads as zeroes.
        for sector in sectors.min(self.now.len())..self.now.len() {
            self.set(sector, [0; SECTOR]);
        }
        self.now.resize(sectors, [0; SECTOR]);
        if self.allowed.len() < sectors {
            self.allowed.resize(sectors, Vec::new());
        }
        for (allowed, now) in self.allowed.iter_mut().zip(&self.now) {
            if allowed.last() != Some(now) {
                allowed.push(*now);
            }
        }
    }
}

struct Run {
    rng: Rng,
    medium: Medium,
    below: Option<Arc<Image>>,
    options: CreateOptions,
    model: Model,
    /// All events before the last sync that has been looked at.
    base: Vec<u8>,
    base_at: usize,
    points: usize,
    asked_qemu: usize,
    seed: u64,
}

fn value(tag: u64, sector: usize) -> Sector {
    let mut bytes = [0; SECTOR];
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = (tag as u8) ^ (sector as u8) ^ (index / 32) as u8;
    }
    bytes[..8].copy_from_slice(&tag.to_be_bytes());
    bytes
}

fn backing_image(sectors: usize) -> (Arc<Image>, Vec<Sector>) {
    let disk: Vec<Sector> = (0..sectors).map(|sector| value(7, sector)).collect();
    let medium = Medium::with(disk.concat());
    (
        Arc::new(
            Image::open_storage(Box::new(medium), "base", &OpenOptions::new(Format::Raw)).unwrap(),
        ),
        disk,
    )
}

impl Run {
    fn new(seed: u64) -> (Self, Image) {
        let mut rng = Rng(seed);
        let version = if rng.chance(85) { 3 } else { 2 };
        let extended_l2 = version == 3 && rng.chance(15);
        let cluster_size = if extended_l2 {
            16384
        } else {
            512 << rng.below(4)
        };
        let sectors = rng.below(600) as usize + 100;
        let mut options = CreateOptions {
            version,
            cluster_size,
            extended_l2,
            ..CreateOptions::new(Format::Qcow2, (sectors * SECTOR) as u64)
        };
        if version == 3 {
            options.lazy_refcounts = rng.chance(15);
            options.refcount_bits = *rng.pick(&[8, 16, 16, 32, 64]);
            options.compression_type = *rng.pick(&[CompressionType::Zlib, CompressionType::Zstd]);
        }
        let (mut below, mut disk) = (None, vec![[0; SECTOR]; sectors]);
        if rng.chance(40) {
            let (image, content) = backing_image(sectors);
            (below, disk) = (Some(image), content);
            options.backing_file = Some("base".into());
            options.backing_format = Some(Format::Raw);
        }
        let medium = Medium::default();
        qcow::create_in(&medium, &options).unwrap();
        let run = Self {
            rng,
            base: Vec::new(),
            base_at: 0,
            medium,
            below,
            options,
            model: Model::new(disk),
            points: 0,
            asked_qemu: 0,
            seed,
        };
        let image = run.open(&run.medium, true).unwrap();
        (run, image)
    }

    fn open(&self, medium: &Medium, writable: bool) -> qcow::Result<Image> {
        let backing = self.below.clone().map_or(Backing::Ignore, Backing::Use);
        // A small cache, so that tables are written at odd moments.
        let options = OpenOptions::new(Format::Qcow2)
            .writable(writable)
            .backing(backing)
            .cache_bytes(32 << 10);
        Image::open_storage(Box::new(medium.clone()), "crash", &options)
    }

    /// Does one operation, adds what it may leave behind to the model.
    fn step(&mut self, image: &Image) {
        let sectors = self.model.now.len();
        let start = self.rng.below(sectors as u64) as usize;
        let longest = (sectors - start).min(if self.rng.chance(20) { 200 } else { 12 });
        let len = self.rng.below(longest as u64) as usize + 1;
        let (offset, bytes) = ((start * SECTOR) as u64, (len * SECTOR) as u64);
        let tag = self.rng.next();
        match self.rng.below(100) {
            0..45 => {
                let data: Vec<Sector> = (start..start + len)
                    .map(|sector| value(tag, sector))
                    .collect();
                (start..)
                    .zip(&data)
                    .for_each(|(sector, data)| self.model.set(sector, *data));
                image.write_at(offset, &data.concat()).unwrap();
            }
            45..56 => {
                (start..start + len).for_each(|sector| self.model.set(sector, [0; SECTOR]));
                image
                    .write_zeroes(offset, bytes, self.rng.chance(60))
                    .unwrap();
            }
            56..66 => {
                (start..start + len)
                    .for_each(|sector| self.model.allowed[sector].push([0; SECTOR]));
                image.discard(offset, bytes).unwrap();
                for sector in start..start + len {
                    image
                        .read_at((sector * SECTOR) as u64, &mut self.model.now[sector])
                        .unwrap();
                }
            }
            66..72 => self.compressed(image, start, tag),
            72..86 => image.flush().unwrap(),
            86..90 if self.below.is_none() => {
                let sectors = self.rng.below(sectors as u64 * 3 / 2) as usize + 8;
                self.model.resize(sectors);
                image
                    .resize((sectors * SECTOR) as u64, Preallocation::Off)
                    .unwrap();
            }
            // Version 2 has no dirty bit that could tell of refcounts raised half-way.
            90..97 if self.options.version == 3 => self.snapshot(image, tag),
            97.. if self.options.version == 3 => self.bitmap(image),
            _ => {}
        }
    }

    fn compressed(&mut self, image: &Image, start: usize, tag: u64) {
        let unit = self.options.cluster_size as usize / SECTOR;
        let start = start - start % unit;
        let end = (start + unit).min(self.model.now.len());
        let data: Vec<Sector> = (start..end).map(|sector| value(tag, sector / 4)).collect();
        (start..)
            .zip(&data)
            .for_each(|(sector, data)| self.model.set(sector, *data));
        match image.write_compressed((start * SECTOR) as u64, &data.concat()) {
            Ok(()) => {}
            Err(error) => panic!("{error}"),
        }
    }

    fn snapshot(&mut self, image: &Image, tag: u64) {
        let names: Vec<String> = self.model.snapshots.keys().cloned().collect();
        match self.rng.below(10) {
            0..5 if names.len() < 4 => {
                let name = format!("s{tag}");
                self.model.fresh = Some(name.clone());
                match image.snapshot_create(&name) {
                    Ok(()) => {
                        self.model.snapshots.insert(name, self.model.now.clone());
                    }
                    Err(error) => assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}"),
                }
            }
            5..7 if !names.is_empty() => {
                let name = self.rng.pick(&names).clone();
                let old = self.model.snapshots[&name].clone();
                self.model.resize(old.len());
                (0..)
                    .zip(&old)
                    .for_each(|(sector, data)| self.model.set(sector, *data));
                match image.snapshot_apply(&name) {
                    Ok(()) => {}
                    // Bitmaps do not follow a snapshot of another size.
                    Err(error) => assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}"),
                }
            }
            7.. if !names.is_empty() => {
                let name = self.rng.pick(&names).clone();
                self.model.snapshots.remove(&name);
                image.snapshot_delete(&name).unwrap();
            }
            _ => {}
        }
    }

    /// Bitmaps come, go and change; whatever happens to them, the image stays consistent.
    fn bitmap(&mut self, image: &Image) {
        let names: Vec<String> = image
            .info()
            .unwrap()
            .qcow2
            .unwrap()
            .bitmaps
            .into_iter()
            .map(|bitmap| bitmap.name)
            .collect();
        let name = format!("b{}", self.rng.below(3));
        if !names.contains(&name) {
            image
                .bitmap_add(&name, Some(512), self.rng.chance(70))
                .unwrap();
        } else if self.rng.chance(40) {
            image.bitmap_remove(&name).unwrap();
        } else if self.rng.chance(50) {
            image.bitmap_clear(&name).unwrap();
        } else {
            image.bitmap_enable(&name, self.rng.chance(50)).unwrap();
        }
    }

    /// Power cuts at points of the record from `start` on.
    fn cut_power(&mut self, start: usize, count: usize) {
        let log: Vec<Event> = self.medium.state().log[self.base_at..].to_vec();
        let first = start - self.base_at;
        for _ in 0..count {
            let at = first + self.rng.below((log.len() - first) as u64 + 1) as usize;
            let synced = log[..at]
                .iter()
                .rposition(|event| matches!(event, Event::Sync))
                .map_or(0, |sync| sync + 1);
            let mut bytes = self.base.clone();
            log[..synced]
                .iter()
                .for_each(|event| apply(&mut bytes, event, None));
            // Often nearly all or nearly nothing of the tail is on the medium; both find mistakes that the mean does not.
            let chance = *self.rng.pick(&[10, 50, 90, 100]);
            for event in &log[synced..at] {
                if self.rng.chance(chance) {
                    let torn = self.rng.chance(50);
                    apply(&mut bytes, event, torn.then_some(&mut self.rng));
                }
            }
            self.points += 1;
            self.look_at(bytes);
        }
        if let Some(sync) = log[..first]
            .iter()
            .rposition(|event| matches!(event, Event::Sync))
        {
            log[..=sync]
                .iter()
                .for_each(|event| apply(&mut self.base, event, None));
            self.base_at += sync + 1;
        }
    }

    fn look_at(&mut self, bytes: Vec<u8>) {
        let context = format!("seed {}, crash point {}", self.seed, self.points);
        let medium = Medium::with(bytes.clone());
        let dirty = medium.state().bytes[79] & 1 == 1 && self.options.version == 3;
        if dirty {
            let repaired = self
                .open(&medium, true)
                .unwrap_or_else(|error| panic!("{context}: {error}"));
            repaired.close().unwrap();
        }
        let for_check = OpenOptions::new(Format::Qcow2).for_check(true);
        let checked = Image::open_storage(Box::new(medium.clone()), "crash", &for_check)
            .unwrap_or_else(|error| panic!("{context}: {error}"))
            .check(Repair::None)
            .unwrap();
        assert_eq!(
            (checked.corruptions, checked.check_errors),
            (0, 0),
            "{context}: {:?}",
            checked.messages
        );
        if dirty {
            assert_eq!(checked.leaks, 0, "{context}: a repaired image leaks");
        }
        if self.points.is_multiple_of(40) {
            self.ask_qemu(&bytes, dirty, &context);
        }
        let image = self
            .open(&medium, false)
            .unwrap_or_else(|error| panic!("{context}: {error}"));
        self.compare(&image, &context);
        self.compare_snapshots(&medium, &context);
    }

    fn ask_qemu(&mut self, bytes: &[u8], dirty: bool, context: &str) {
        self.asked_qemu += 1;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("crash.qcow2");
        std::fs::write(&path, bytes).unwrap();
        std::fs::write(dir.path().join("base"), vec![0; 1 << 20]).unwrap();
        if dirty {
            peer::run("qemu-img", &["check", "-q", "-r", "all", peer::text(&path)]);
        }
        let output = peer::run("qemu-img", &["check", peer::text(&path)]);
        let said =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        // 3: leaks, and nothing else.
        assert!(
            matches!(output.status.code(), Some(0 | 3)),
            "{context}: qemu-img check: {said}"
        );
    }

    fn compare(&self, image: &Image, context: &str) {
        let sectors = image.virtual_size() as usize / SECTOR;
        assert!(
            self.model.sizes.contains(&sectors),
            "{context}: {sectors} sectors, not {:?}",
            self.model.sizes
        );
        let mut disk = vec![0; sectors * SECTOR];
        image
            .read_at(0, &mut disk)
            .unwrap_or_else(|error| panic!("{context}: {error}"));
        for (sector, data) in disk.chunks(SECTOR).enumerate() {
            assert!(
                self.model.allowed[sector]
                    .iter()
                    .any(|allowed| allowed[..] == *data),
                "{context}: sector {sector} holds {:02x?}…, which is none of {:02x?}",
                &data[..16],
                self.model.allowed[sector]
                    .iter()
                    .map(|allowed| allowed[..16].to_vec())
                    .collect::<Vec<_>>()
            );
        }
    }

    fn compare_snapshots(&self, medium: &Medium, context: &str) {
        for (name, sectors) in &self.model.snapshots {
            let backing = self.below.clone().map_or(Backing::Ignore, Backing::Use);
            let options = OpenOptions::new(Format::Qcow2)
                .backing(backing)
                .snapshot(Some(name.clone()));
            // While it is being taken it may not be there yet.
            let old = match Image::open_storage(Box::new(medium.clone()), "crash", &options) {
                Ok(old) => old,
                Err(error)
                    if error.kind() == ErrorKind::NotFound
                        && self.model.fresh.as_ref() == Some(name) =>
                {
                    continue;
                }
                Err(error) => panic!("{context}: {error}"),
            };
            let mut disk = vec![0; sectors.len() * SECTOR];
            old.read_at(0, &mut disk).unwrap();
            assert!(
                disk == sectors.concat(),
                "{context}: snapshot {name} is not what it was"
            );
        }
    }
}

/// Runs one workload; returns how many crash points were looked at, and how many of them by QEMU.
fn run(seed: u64) -> (usize, usize) {
    let (mut run, mut image) = Run::new(seed);
    run.base_at = run.medium.state().log.len();
    run.base = run.medium.state().bytes.clone();
    for _ in 0..45 {
        let start = run.medium.state().log.len();
        let was_flush = {
            let synced_before = run.medium.state().log.len();
            if run.rng.chance(4) {
                image.close().unwrap();
                image = run.open(&run.medium, true).unwrap();
            } else {
                run.step(&image);
            }
            let end = run.medium.state().log.len();
            synced_before != end && matches!(run.medium.state().log[end - 1], Event::Sync)
        };
        run.cut_power(start, 5);
        run.model.fresh = None;
        // An operation that ends with a sync after all writes of the image is a flush; so is an explicit one.
        if was_flush {
            image.flush().unwrap();
            run.model.flushed();
        }
    }
    (run.points, run.asked_qemu)
}

#[test]
fn after_a_crash_the_image_is_consistent_and_holds_what_was_flushed() {
    let base: u64 = std::env::var("QCOW_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or(1);
    let wanted: usize = std::env::var("QCOW_CRASH_POINTS")
        .ok()
        .and_then(|count| count.parse().ok())
        .unwrap_or(10_000);
    let (mut points, mut asked) = (0, 0);
    for seed in base.. {
        if points >= wanted {
            break;
        }
        let (more, qemu) = run(seed);
        points += more;
        asked += qemu;
    }
    println!(
        "{points} crash points from seed {base} on, {asked} of them looked at by qemu-img check"
    );
}
