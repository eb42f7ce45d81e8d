//! What a disk shows, as far as it can be read, to be compared with what it shows later.

use qcow::{Format, Image, OpenOptions, SnapshotInfo};

use crate::host::Host;

/// As much of a disk is looked at.
const MOST: u64 = 1 << 20;
const PIECE: usize = 4096;
const SECTOR: usize = 512;

/// Sectors of a disk. `None`: cannot be read.
#[derive(PartialEq, Eq)]
struct Disk(Vec<Option<Vec<u8>>>);

/// A disk and those in its snapshots.
pub struct Content {
    disk: Option<Disk>,
    snapshots: Vec<(SnapshotInfo, Disk)>,
}

impl Content {
    /// Reads an image and its first snapshots, without changing anything.
    pub fn of(host: &Host) -> Self {
        let options = OpenOptions::new(Format::Qcow2);
        let Ok(image) = host.open(options.clone()) else {
            return Self {
                disk: None,
                snapshots: Vec::new(),
            };
        };
        let list = image.snapshots().unwrap_or_default();
        let snapshots = list.into_iter().take(3).filter_map(|one| {
            let of_snapshot = options.clone().snapshot(Some(one.id.clone()));
            let image = host.open(of_snapshot).ok()?;
            Some((one, Disk::of(&image)))
        });
        Self {
            snapshots: snapshots.collect(),
            disk: Some(Disk::of(&image)),
        }
    }

    /// Panics unless all that could be read before can be, and is what it was.
    pub fn is_kept(&self, before: &Self, after_what: &str) {
        let Some(old) = &before.disk else {
            return;
        };
        let now = self.disk.as_ref();
        let now = now.unwrap_or_else(|| panic!("{after_what}, an image cannot be opened"));
        now.is_kept(old, "the disk", after_what);
        for (snapshot, old) in &before.snapshots {
            let found = self.snapshots.iter().find(|(one, _)| one.id == snapshot.id);
            let Some((_, now)) = found else {
                panic!("{after_what}, there is no {snapshot:?} any more");
            };
            now.is_kept(old, "a snapshot", after_what);
        }
    }
}

impl Disk {
    fn of(image: &Image) -> Self {
        let len = image.virtual_size().min(MOST) as usize;
        let mut sectors = Vec::with_capacity(len / SECTOR);
        let mut buffer = [0; PIECE];
        for start in (0..len).step_by(PIECE) {
            let piece = &mut buffer[..PIECE.min(len - start)];
            let whole = image.read_at(start as u64, piece).is_ok();
            for (index, sector) in piece.chunks_mut(SECTOR).enumerate() {
                let at = (start + index * SECTOR) as u64;
                let read = whole || image.read_at(at, sector).is_ok();
                sectors.push(read.then(|| sector.to_vec()));
            }
        }
        Self(sectors)
    }

    fn is_kept(&self, before: &Self, what: &str, after_what: &str) {
        for (index, old) in before.0.iter().enumerate() {
            let now = self.0.get(index);
            assert!(
                old.is_none() || now == Some(old),
                "{after_what}, {what} shows something else at {}: {}",
                index * SECTOR,
                match now {
                    Some(Some(_)) => "other data",
                    Some(None) => "an error",
                    None => "nothing",
                }
            );
        }
    }
}
