//! Requests in flight, recorded in memory that the frontend keeps when this process dies.
//! (vhost-user specification, "Inflight I/O tracking", split virtqueues)
//!
//! One region per ring, in this layout, native byte order; regions are aligned to 64 bytes, as libvhost-user has them:
//!
//! ```text
//! u64 features | u16 version (1) | u16 desc_num | u16 last_batch_head | u16 used_idx | desc[desc_num]
//! desc: u8 inflight | 5 bytes | u16 next | u64 counter
//! ```
//!
//! Behind the regions, if the area has room, is the device's own [`RecoveryArea`].
//!
//! A "batch" of the specification is the requests that one update of the used index completes: one request, or the
//! merged buffers of one packet.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{MemfdFlags, SealFlags};
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};

use crate::error::RingError;
use crate::sigbus::{self, Mapped};

const ALIGNMENT: u64 = 64;
const VERSION: u16 = 1;

// Offsets in a region.
const HEADER: usize = 16;
const VERSION_AT: usize = 8;
const DESC_NUM_AT: usize = 10;
const LAST_BATCH_HEAD_AT: usize = 12;
const USED_IDX_AT: usize = 14;

// Offsets in an entry of desc[].
const ENTRY: usize = 16;
const INFLIGHT_AT: usize = 0;
const NEXT_AT: usize = 6;
const COUNTER_AT: usize = 8;

/// Bytes of the recovery area.
const RECOVERY_AREA: u64 = 64;

/// The bytes one ring of `size` descriptors takes.
fn region_size(size: u16) -> u64 {
    (HEADER as u64 + ENTRY as u64 * u64::from(size)).next_multiple_of(ALIGNMENT)
}

/// The area as the messages GET_INFLIGHT_FD and SET_INFLIGHT_FD describe it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct AreaLayout {
    pub(crate) size: u64,
    pub(crate) offset: u64,
    pub(crate) rings: u16,
    pub(crate) ring_size: u16,
}

/// The shared memory of all rings.
#[derive(Clone, Debug)]
pub(crate) struct InflightArea {
    mapping: Arc<MmapRegion>,
    layout: AreaLayout,
}

impl InflightArea {
    /// Makes a fresh area, all zeroes, that can neither shrink nor grow. (GET_INFLIGHT_FD)
    pub(crate) fn create(rings: u16, ring_size: u16) -> Result<(File, AreaLayout), String> {
        let layout = AreaLayout {
            size: region_size(ring_size) * u64::from(rings) + RECOVERY_AREA,
            offset: 0,
            rings,
            ring_size,
        };
        let make = || {
            let fd = rustix::fs::memfd_create(
                "bulkhead-inflight",
                MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
            )?;
            rustix::fs::ftruncate(&fd, layout.size)?;
            rustix::fs::fcntl_add_seals(
                &fd,
                SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL,
            )?;
            Ok::<_, rustix::io::Errno>(File::from(fd))
        };
        let file = make().map_err(|error| format!("cannot make an in-flight area: {error}"))?;
        Ok((file, layout))
    }

    /// Maps the area that the frontend has kept. (SET_INFLIGHT_FD)
    pub(crate) fn map(file: File, layout: AreaLayout) -> Result<Self, String> {
        let needed = region_size(layout.ring_size) * u64::from(layout.rings);
        let metadata = file
            .metadata()
            .map_err(|error| format!("in-flight area: {error}"))?;
        let length = metadata.len();
        let end = layout.offset.checked_add(needed);
        if layout.size < needed || end.is_none_or(|end| end > length) {
            return Err(format!(
                "the in-flight area has {} bytes, {needed} are needed",
                layout.size.min(length)
            ));
        }
        // Another backend may have made the area, without a recovery area.
        let whole = needed + RECOVERY_AREA;
        let has_more = layout.size >= whole && layout.offset + whole <= length;
        let size = if has_more { whole } else { needed };
        let size = usize::try_from(size).map_err(|error| error.to_string())?;
        let mapping = MmapRegion::from_file(FileOffset::new(file, layout.offset), size)
            .map_err(|error| format!("in-flight area: {error}"))?;
        let mapped = Mapped {
            start: mapping.as_ptr(),
            length: size,
            block: metadata.blksize(),
        };
        let mapping = Arc::new(mapping);
        sigbus::watch(Arc::clone(&mapping) as _, mapped)?;
        Ok(Self { mapping, layout })
    }

    /// The device's own area behind the regions, if there is room for it.
    pub(crate) fn recovery_area(&self) -> Option<RecoveryArea> {
        let start = region_size(self.layout.ring_size) * u64::from(self.layout.rings);
        let start = usize::try_from(start).ok()?;
        let words = self.mapping.len().checked_sub(start)? / size_of::<u64>();
        (words > 0).then(|| RecoveryArea {
            mapping: Arc::clone(&self.mapping),
            start,
            words,
        })
    }

    /// The record of ring `index`, which has `size` descriptors.
    pub(crate) fn ring(&self, index: u16, size: u16) -> Result<InflightRing, RingError> {
        if index >= self.layout.rings || size > self.layout.ring_size {
            return Err(RingError::Inflight);
        }
        let start = region_size(self.layout.ring_size) * u64::from(index);
        let ring = InflightRing {
            mapping: Arc::clone(&self.mapping),
            start: usize::try_from(start).map_err(|_| RingError::Inflight)?,
            size,
            counter: 0,
            #[cfg(test)]
            fuse: std::cell::Cell::new(usize::MAX),
        };
        match ring.load::<u16>(VERSION_AT)? {
            // Never used.
            0 => {
                ring.store(DESC_NUM_AT, size)?;
                ring.store(VERSION_AT, VERSION)?;
            }
            VERSION => {
                // A driver may set up a shorter or longer ring than the one before it, but only with nothing left in
                // flight.
                if ring.load::<u16>(DESC_NUM_AT)? != size {
                    ring.forget()?;
                    ring.store(DESC_NUM_AT, size)?;
                }
            }
            _ => return Err(RingError::Inflight),
        }
        Ok(ring)
    }
}

/// Memory for the device behind the in-flight records. The frontend keeps it when this process dies, and gives it to
/// the next. It is an array of 64-bit words, all zero at first.
#[derive(Clone, Debug)]
pub struct RecoveryArea {
    mapping: Arc<MmapRegion>,
    start: usize,
    words: usize,
}

impl RecoveryArea {
    /// How many words there are.
    #[must_use]
    pub fn words(&self) -> usize {
        self.words
    }

    /// The word at `at`; 0 if there is none.
    #[must_use]
    pub fn load(&self, at: usize) -> u64 {
        let slice = self.mapping.as_volatile_slice();
        match at < self.words {
            true => slice
                .load(self.start + at * size_of::<u64>(), Ordering::Acquire)
                .unwrap_or(0),
            false => 0,
        }
    }

    /// Sets the word at `at`, if there is one. The next process sees no store without those made before it.
    pub fn store(&self, at: usize, word: u64) {
        if at < self.words {
            let slice = self.mapping.as_volatile_slice();
            // It is within the mapping.
            let _ = slice.store(word, self.start + at * size_of::<u64>(), Ordering::Release);
        }
    }
}

/// The record of one ring.
#[derive(Debug)]
pub(crate) struct InflightRing {
    mapping: Arc<MmapRegion>,
    start: usize,
    size: u16,
    /// The number of the next request taken.
    counter: u64,
    /// How many more stores succeed before the simulated death of the process.
    #[cfg(test)]
    fuse: std::cell::Cell<usize>,
}

impl InflightRing {
    /// Records the request at `head` as in flight. To be called before any of it is executed.
    pub(crate) fn take(&mut self, head: u16) -> Result<(), RingError> {
        let entry = self.entry(head)?;
        self.store(entry + COUNTER_AT, self.counter)?;
        self.counter = self.counter.wrapping_add(1);
        self.store(entry + INFLIGHT_AT, 1u8)
    }

    /// Records that the request at `head`, not executed, is in the available ring again.
    pub(crate) fn untake(&mut self, head: u16) -> Result<(), RingError> {
        self.store(self.entry(head)? + INFLIGHT_AT, 0u8)
    }

    /// Adds the request at `head` to the batch. To be called before the used index moves.
    pub(crate) fn done(&self, head: u16) -> Result<(), RingError> {
        let last: u16 = self.load(LAST_BATCH_HEAD_AT)?;
        self.store(self.entry(head)? + NEXT_AT, last)?;
        self.store(LAST_BATCH_HEAD_AT, head)
    }

    /// Records that the used index, now `used_idx`, has moved past the batch `heads`.
    pub(crate) fn used(&self, heads: &[u16], used_idx: u16) -> Result<(), RingError> {
        for &head in heads {
            self.store(self.entry(head)? + INFLIGHT_AT, 0u8)?;
        }
        // Until here, the batch is what the old index is behind by.
        self.store(USED_IDX_AT, used_idx)
    }

    /// Returns the heads of the requests that another process left in flight, in the order in which it took them.
    /// `used_idx` is the index of the used ring, by which the driver knows what is completed.
    pub(crate) fn recover(&mut self, used_idx: u16) -> Result<Vec<u16>, RingError> {
        // The process may have died after the used index moved and before it recorded that: the batch is completed.
        let behind = used_idx.wrapping_sub(self.load(USED_IDX_AT)?);
        let mut head: u16 = self.load(LAST_BATCH_HEAD_AT)?;
        for _ in 0..behind.min(self.size) {
            let entry = self.entry(head)?;
            self.store(entry + INFLIGHT_AT, 0u8)?;
            head = self.load(entry + NEXT_AT)?;
        }
        self.store(USED_IDX_AT, used_idx)?;

        let mut left = Vec::new();
        for head in 0..self.size {
            let entry = self.entry(head)?;
            if self.load::<u8>(entry + INFLIGHT_AT)? == 1 {
                left.push((self.load::<u64>(entry + COUNTER_AT)?, head));
            }
        }
        left.sort_unstable();
        self.counter = left
            .last()
            .map_or(0, |&(counter, _)| counter.wrapping_add(1));
        Ok(left.into_iter().map(|(_, head)| head).collect())
    }

    /// Records that nothing is in flight.
    pub(crate) fn forget(&self) -> Result<(), RingError> {
        (0..self.size).try_for_each(|head| self.store(self.entry(head)? + INFLIGHT_AT, 0u8))
    }

    /// The offset of the entry of `head`.
    fn entry(&self, head: u16) -> Result<usize, RingError> {
        if head < self.size {
            Ok(HEADER + ENTRY * usize::from(head))
        } else {
            Err(RingError::Inflight)
        }
    }

    /// Stores become visible in the order in which they are made: the next process sees none without those before it.
    fn store<T: vm_memory::AtomicAccess>(&self, at: usize, value: T) -> Result<(), RingError> {
        #[cfg(test)]
        self.fuse
            .set(self.fuse.get().checked_sub(1).ok_or(RingError::Inflight)?);
        self.mapping
            .as_volatile_slice()
            .store(value, self.start + at, Ordering::Release)
            .map_err(|_| RingError::Inflight)
    }

    fn load<T: vm_memory::AtomicAccess>(&self, at: usize) -> Result<T, RingError> {
        self.mapping
            .as_volatile_slice()
            .load(self.start + at, Ordering::Acquire)
            .map_err(|_| RingError::Inflight)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn area(rings: u16, size: u16) -> InflightArea {
        let (file, layout) = InflightArea::create(rings, size).unwrap();
        InflightArea::map(file, layout).unwrap()
    }

    #[test]
    fn the_layout_is_the_specifications() {
        let area = area(2, 8);
        let mut ring = area.ring(1, 8).unwrap();
        ring.take(3).unwrap();
        ring.take(5).unwrap();
        ring.done(3).unwrap();
        ring.used(&[3], 1).unwrap();

        let bytes = area.mapping.as_volatile_slice();
        let region = 192; // 16 + 8 * 16, in steps of 64
        assert_eq!(region_size(8), region as u64);
        assert_eq!(bytes.read_obj::<u16>(region + 8).unwrap(), 1);
        assert_eq!(bytes.read_obj::<u16>(region + 10).unwrap(), 8);
        assert_eq!(bytes.read_obj::<u16>(region + 12).unwrap(), 3);
        assert_eq!(bytes.read_obj::<u16>(region + 14).unwrap(), 1);
        let entry = |head: usize| region + 16 + 16 * head;
        assert_eq!(bytes.read_obj::<u8>(entry(3)).unwrap(), 0);
        assert_eq!(bytes.read_obj::<u8>(entry(5)).unwrap(), 1);
        assert_eq!(bytes.read_obj::<u64>(entry(5) + 8).unwrap(), 1);
        assert_eq!(bytes.read_obj::<u64>(0).unwrap(), 0);
    }

    #[test]
    fn what_was_taken_comes_back_in_order() {
        let area = area(1, 8);
        let mut ring = area.ring(0, 8).unwrap();
        for head in [6, 1, 4] {
            ring.take(head).unwrap();
        }
        ring.done(1).unwrap();
        ring.used(&[1], 1).unwrap();

        let mut next = area.ring(0, 8).unwrap();
        assert_eq!(next.recover(1).unwrap(), [6, 4]);

        // And the order goes on in the next life.
        next.take(0).unwrap();
        assert_eq!(area.ring(0, 8).unwrap().recover(1).unwrap(), [6, 4, 0]);
    }

    #[test]
    fn a_batch_that_was_used_but_not_recorded_is_not_done_again() {
        let area = area(1, 8);
        let mut ring = area.ring(0, 8).unwrap();
        for head in [2, 5, 7] {
            ring.take(head).unwrap();
        }
        // A backend completes two requests at once, and dies after it has moved the used index.
        ring.done(5).unwrap();
        ring.done(2).unwrap();

        assert_eq!(area.ring(0, 8).unwrap().recover(2).unwrap(), [7]);
    }

    #[test]
    fn an_area_that_makes_no_sense_is_refused_and_never_followed_out_of_bounds() {
        let (file, layout) = InflightArea::create(1, 8).unwrap();
        let claim = AreaLayout {
            ring_size: 1 << 15,
            ..layout
        };
        assert!(InflightArea::map(file.try_clone().unwrap(), claim).is_err());
        let claim = AreaLayout {
            size: u64::MAX,
            rings: 1 << 12,
            ..layout
        };
        assert!(InflightArea::map(file.try_clone().unwrap(), claim).is_err());

        let area = InflightArea::map(file, layout).unwrap();
        assert!(area.ring(1, 8).is_err());
        assert!(area.ring(0, 16).is_err());
        let mut ring = area.ring(0, 8).unwrap();
        ring.store(LAST_BATCH_HEAD_AT, 999u16).unwrap();
        assert_eq!(ring.recover(3), Err(RingError::Inflight));
        assert!(ring.take(8).is_err());
        ring.store(VERSION_AT, 2u16).unwrap();
        assert!(area.ring(0, 8).is_err());
    }

    #[test]
    fn the_recovery_area_is_behind_the_records_and_outlives_the_mapping() {
        let (file, layout) = InflightArea::create(2, 8).unwrap();
        let area = InflightArea::map(file.try_clone().unwrap(), layout).unwrap();
        let recovery = area.recovery_area().unwrap();
        let last = recovery.words() - 1;
        recovery.store(0, 5);
        recovery.store(last, 6);
        recovery.store(last + 1, 7);
        assert_eq!(area.ring(1, 8).unwrap().recover(0).unwrap(), [] as [u16; 0]);
        drop((area, recovery));

        let recovery = InflightArea::map(file.try_clone().unwrap(), layout)
            .unwrap()
            .recovery_area()
            .unwrap();
        assert_eq!(
            (
                recovery.load(0),
                recovery.load(last),
                recovery.load(last + 1)
            ),
            (5, 6, 0)
        );

        // One that was made by somebody else has records only.
        let small = AreaLayout {
            size: layout.size - RECOVERY_AREA,
            ..layout
        };
        assert!(
            InflightArea::map(file, small)
                .unwrap()
                .recovery_area()
                .is_none()
        );
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Take,
        /// Which one, and how many with it at once.
        Complete(usize, usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            Just(Step::Take),
            (0usize..8, 1usize..4).prop_map(|(which, many)| Step::Complete(which, many))
        ];
        proptest::collection::vec(step, 1..60)
    }

    /// Takes and completes as `steps` say until the fuse of `ring` blows. Gives what the driver does not know to be
    /// done, in the order it was taken, and the index of the used ring.
    fn live(ring: &mut InflightRing, steps: &[Step]) -> (Vec<u16>, u16) {
        let mut free: Vec<u16> = (0..ring.size).rev().collect();
        let mut taken: Vec<u16> = Vec::new();
        let mut used_idx = 0u16;
        for step in steps {
            match *step {
                Step::Take => {
                    let Some(head) = free.pop() else { continue };
                    if ring.take(head).is_err() {
                        break;
                    }
                    taken.push(head);
                }
                Step::Complete(which, many) if !taken.is_empty() => {
                    let first = which % taken.len();
                    let heads: Vec<u16> = taken[first..].iter().take(many).copied().collect();
                    if heads.iter().any(|&head| ring.done(head).is_err()) {
                        break;
                    }
                    used_idx = used_idx.wrapping_add(heads.len() as u16);
                    taken.retain(|other| !heads.contains(other));
                    free.extend(&heads);
                    if ring.used(&heads, used_idx).is_err() {
                        break;
                    }
                }
                Step::Complete(..) => {}
            }
        }
        (taken, used_idx)
    }

    proptest! {
        #[test]
        fn nothing_is_lost_or_repeated_wherever_it_dies(steps in steps(), stores in 0usize..300) {
            let area = area(1, 8);
            let mut ring = area.ring(0, 8).unwrap();
            ring.fuse.set(stores);

            let (undone, used_idx) = live(&mut ring, &steps);

            let mut next = area.ring(0, 8).unwrap();
            prop_assert_eq!(next.recover(used_idx).unwrap(), undone);
        }
    }
}
