//! The comparison: one walk over the extents of both disks, and threads that read the ranges that may differ.

use std::ffi::OsStr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use qcow::Extent;

use super::Verdict;
use crate::copy::buffer::Buffer;
use crate::copy::workers;
use crate::copy::zero::{SECTOR, is_zero};
use crate::open::disk::Disk;
use crate::output::errors::cause;
use crate::output::progress::Progress;

const NO_STATUS: u8 = 3;
const NOT_READ: u8 = 4;

/// Bytes of one read. With shorter ones, system calls cost more than the processor's cache saves.
const CHUNK: u64 = 1 << 20;

/// One of the disks.
#[derive(Debug)]
pub(super) struct Side<'a> {
    disk: Disk<'a>,
    name: String,
}

impl<'a> Side<'a> {
    pub(super) fn new(disk: Disk<'a>, name: &OsStr) -> Self {
        Self {
            disk,
            name: name.to_string_lossy().into_owned(),
        }
    }

    fn map(&self, offset: u64, len: u64) -> Result<Extent, Verdict> {
        self.disk.map(offset, len).map_err(|_| {
            let message = format!("Sector allocation test failed for {}", self.name);
            Verdict::Failed(NO_STATUS, message)
        })
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Verdict> {
        self.disk.read(offset, buffer).map_err(|error| {
            let cause = cause(&error, self.disk.0.path());
            let message = format!(
                "Error while reading offset {offset} of {}: {cause}",
                self.name
            );
            Verdict::Failed(NOT_READ, message)
        })
    }
}

/// Both disks.
#[derive(Debug)]
pub(super) struct Sides<'a> {
    pub(super) a: Side<'a>,
    pub(super) b: Side<'a>,
    pub(super) strict: bool,
    pub(super) progress: &'a Progress,
}

/// A range to read.
#[derive(Debug, Clone, Copy)]
struct Range {
    offset: u64,
    len: u64,
    /// Whether each side may hold data; if not, it reads as zeroes.
    a: bool,
    b: bool,
}

/// The state of the walk.
#[derive(Debug, Default)]
struct Walk {
    offset: u64,
    a: Option<Extent>,
    b: Option<Extent>,
    /// The verdict with the lowest offset.
    found: Option<(u64, Verdict)>,
}

impl Sides<'_> {
    pub(super) fn compare(&self) -> Verdict {
        if self.strict && self.a.disk.size() != self.b.disk.size() {
            return different("Strict mode: Image size mismatch!");
        }
        self.progress.set(0.0);
        let walk = Mutex::new(Walk::default());
        workers::share(workers::processors(), || self.work(&walk));
        let sizes_differ = self.a.disk.size() != self.b.disk.size();
        match walk
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
            .found
        {
            // qemu-img warns of different sizes when it reaches the end of the shorter disk.
            Some((offset, Verdict::Different { why, .. })) => Verdict::Different {
                sizes_differ: offset >= self.shared_size(),
                why,
            },
            Some((_, verdict)) => verdict,
            None => Verdict::Same { sizes_differ },
        }
    }

    fn shared_size(&self) -> u64 {
        self.a.disk.size().min(self.b.disk.size())
    }

    fn whole_size(&self) -> u64 {
        self.a.disk.size().max(self.b.disk.size())
    }

    fn work(&self, walk: &Mutex<Walk>) {
        let mut buffers = (Buffer::new(CHUNK as usize), Buffer::new(CHUNK as usize));
        loop {
            let mut walking = lock(walk);
            if walking.found.is_some() {
                return;
            }
            let range = match self.next(&mut walking) {
                Ok(Some(range)) => range,
                Ok(None) => return,
                Err(verdict) => {
                    let offset = walking.offset;
                    return keep_lowest(&mut walking, offset, verdict);
                }
            };
            drop(walking);
            if let Err((offset, verdict)) = self.range(range, &mut buffers) {
                keep_lowest(&mut lock(walk), offset, verdict);
            }
        }
    }

    /// The next range to read.
    fn next(&self, walk: &mut Walk) -> Result<Option<Range>, Verdict> {
        let end = self.whole_size();
        while walk.offset < end {
            let offset = walk.offset;
            let (a, a_end) = extent(&mut walk.a, &self.a, offset)?;
            let (b, b_end) = extent(&mut walk.b, &self.b, offset)?;
            if self.strict && kind(&a) != kind(&b) {
                let why = format!("Strict mode: Offset {offset} block status mismatch!");
                return Err(different(&why));
            }
            let (a, b) = (!reads_zero(&a), !reads_zero(&b));
            let mut len = a_end.min(b_end).min(end) - offset;
            if a || b {
                len = len.min(CHUNK);
            }
            walk.offset += len;
            self.progress.advance(len as f32 / end as f32 * 100.0);
            if a || b {
                return Ok(Some(Range { offset, len, a, b }));
            }
        }
        Ok(None)
    }

    /// Compares one range. A verdict has its offset.
    fn range(&self, range: Range, buffers: &mut (Buffer, Buffer)) -> Result<(), (u64, Verdict)> {
        let Range { offset, len, a, b } = range;
        let failed = |verdict| (offset, verdict);
        let first = buffers.0.first(len as usize);
        if !(a && b) {
            let side = if a { &self.a } else { &self.b };
            side.read(offset, first).map_err(failed)?;
            return match first.chunks(SECTOR).position(|sector| !is_zero(sector)) {
                Some(sector) => Err(mismatch(offset + (sector * SECTOR) as u64)),
                None => Ok(()),
            };
        }
        let second = buffers.1.first(len as usize);
        self.a.read(offset, first).map_err(failed)?;
        self.b.read(offset, second).map_err(failed)?;
        if first != second {
            let sectors = first.chunks(SECTOR).zip(second.chunks(SECTOR));
            let same = sectors
                .take_while(|(first, second)| first == second)
                .count();
            return Err(mismatch(offset + (same * SECTOR) as u64));
        }
        Ok(())
    }
}

fn lock(walk: &Mutex<Walk>) -> MutexGuard<'_, Walk> {
    walk.lock().unwrap_or_else(PoisonError::into_inner)
}

fn keep_lowest(walk: &mut Walk, offset: u64, verdict: Verdict) {
    if walk
        .found
        .as_ref()
        .is_none_or(|(lowest, _)| offset < *lowest)
    {
        walk.found = Some((offset, verdict));
    }
}

/// The extent of a side at `offset`, and its end; looked up only when the known one ends before. Past the end of the
/// disk are zeroes.
fn extent(
    known: &mut Option<Extent>,
    side: &Side<'_>,
    offset: u64,
) -> Result<(Extent, u64), Verdict> {
    let size = side.disk.size();
    let beyond = known
        .as_ref()
        .is_none_or(|extent| offset >= extent.start + extent.length);
    if beyond && offset < size {
        *known = Some(side.map(offset, size - offset)?);
    }
    match known {
        Some(extent) if offset < size => Ok((extent.clone(), extent.start + extent.length)),
        _ => Ok((past_the_end(offset), u64::MAX)),
    }
}

fn past_the_end(start: u64) -> Extent {
    Extent {
        start,
        length: u64::MAX - start,
        depth: 0,
        present: false,
        zero: true,
        data: false,
        compressed: false,
        missing: false,
        offset: None,
        file: None,
    }
}

/// What is compared in strict mode.
fn kind(extent: &Extent) -> [bool; 5] {
    let known = extent.offset.is_some();
    [
        extent.present,
        extent.zero,
        extent.data,
        extent.compressed,
        known,
    ]
}

fn reads_zero(extent: &Extent) -> bool {
    // The read of what is missing fails.
    !extent.missing && (extent.zero || !extent.present)
}

fn different(why: &str) -> Verdict {
    Verdict::Different {
        sizes_differ: false,
        why: why.to_owned(),
    }
}

fn mismatch(offset: u64) -> (u64, Verdict) {
    let why = format!("Content mismatch at offset {offset}!");
    (offset, different(&why))
}
