//! A bus: which device is at which address.

use std::sync::{Arc, PoisonError, RwLock};

use thiserror::Error;

/// A device on a bus. Accesses come from any vCPU thread, of any width and at any alignment.
pub trait BusDevice: Send + Sync {
    /// Reads `data.len()` bytes at `offset` from the start of the device's range. Bytes that it leaves unchanged read
    /// as ones, with which [`Bus::read`] fills `data`.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// Writes `data` at `offset` from the start of the device's range.
    fn write(&self, offset: u64, data: &[u8]);
}

/// Why a device cannot be put on a bus.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BusError {
    /// The range is empty or goes beyond the end of the address space.
    #[error("the range {0:#x}+{1:#x} is empty or wraps around")]
    Range(u64, u64),
    /// Another device is there.
    #[error("the range {0:#x}+{1:#x} overlaps another device")]
    Overlap(u64, u64),
}

struct Slot {
    base: u64,
    last: u64,
    device: Arc<dyn BusDevice>,
}

/// Address ranges and their devices. All vCPU threads share it.
#[derive(Default)]
pub struct Bus {
    /// Sorted by `base`, without overlaps.
    slots: RwLock<Vec<Slot>>,
}

impl Bus {
    /// A bus without devices.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts `device` at `base`, `len` bytes long.
    ///
    /// # Errors
    /// When the range is empty, wraps around or overlaps another device's.
    pub fn insert(&self, base: u64, len: u64, device: Arc<dyn BusDevice>) -> Result<(), BusError> {
        let last = len
            .checked_sub(1)
            .and_then(|span| base.checked_add(span))
            .ok_or(BusError::Range(base, len))?;
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        let at = slots.partition_point(|slot| slot.last < base);
        if slots.get(at).is_some_and(|next| next.base <= last) {
            return Err(BusError::Overlap(base, len));
        }
        slots.insert(at, Slot { base, last, device });
        Ok(())
    }

    /// Removes the device whose range starts at `base`.
    pub fn remove(&self, base: u64) -> Option<Arc<dyn BusDevice>> {
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        let at = slots.binary_search_by_key(&base, |slot| slot.base).ok()?;
        Some(slots.remove(at).device)
    }

    /// Reads `data.len()` bytes at `address`. Where no device is, they are ones, as on real buses. Returns whether a
    /// device is there.
    pub fn read(&self, address: u64, data: &mut [u8]) -> bool {
        data.fill(0xff);
        match self.find(address) {
            Some((offset, device)) => {
                device.read(offset, data);
                true
            }
            None => false,
        }
    }

    /// Writes `data` at `address`. Where no device is, the write has no effect. Returns whether a device is there.
    pub fn write(&self, address: u64, data: &[u8]) -> bool {
        match self.find(address) {
            Some((offset, device)) => {
                device.write(offset, data);
                true
            }
            None => false,
        }
    }

    /// The device at `address` and the offset in its range. It is called without the lock, so a device may change the
    /// bus.
    fn find(&self, address: u64) -> Option<(u64, Arc<dyn BusDevice>)> {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        let slot = slots.get(slots.partition_point(|slot| slot.last < address))?;
        (slot.base <= address).then(|| (address - slot.base, slot.device.clone()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Recorder(Mutex<Vec<(u64, Vec<u8>)>>);

    impl BusDevice for Recorder {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }

        fn write(&self, offset: u64, data: &[u8]) {
            self.0.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    #[test]
    fn accesses_reach_the_device_with_its_own_offset() {
        let (bus, device) = (Bus::new(), Arc::new(Recorder::default()));
        bus.insert(0x1000, 0x10, device.clone()).unwrap();

        let mut data = [0; 2];
        assert!(bus.read(0x100f, &mut data));
        assert!(bus.write(0x1003, &[1, 2, 3, 4]));

        assert_eq!(data, [0xf, 0xf]);
        assert_eq!(*device.0.lock().unwrap(), [(3, vec![1, 2, 3, 4])]);
    }

    #[test]
    fn where_nobody_answers_reads_give_ones() {
        let bus = Bus::new();
        bus.insert(0x1000, 0x10, Arc::new(Recorder::default()))
            .unwrap();

        for address in [0, 0xfff, 0x1010, u64::MAX] {
            let mut data = [0; 4];
            assert!(!bus.read(address, &mut data));
            assert_eq!(data, [0xff; 4]);
            assert!(!bus.write(address, &data));
        }
    }

    #[test]
    fn ranges_may_touch_but_not_overlap_or_wrap() {
        let bus = Bus::new();
        let put = |base, len| bus.insert(base, len, Arc::new(Recorder::default()));
        put(0x1000, 0x1000).unwrap();

        assert_eq!(put(0x0, 0x1001), Err(BusError::Overlap(0, 0x1001)));
        assert_eq!(put(0x1fff, 1), Err(BusError::Overlap(0x1fff, 1)));
        assert_eq!(put(0x0, 0x8000), Err(BusError::Overlap(0, 0x8000)));
        assert_eq!(put(0x5000, 0), Err(BusError::Range(0x5000, 0)));
        assert_eq!(put(u64::MAX, 2), Err(BusError::Range(u64::MAX, 2)));
        put(0x0, 0x1000).unwrap();
        put(0x2000, 0x1000).unwrap();
        put(u64::MAX, 1).unwrap();
    }

    #[test]
    fn a_removed_device_no_longer_answers() {
        let bus = Bus::new();
        bus.insert(0x10, 8, Arc::new(Recorder::default())).unwrap();

        assert!(bus.remove(0x11).is_none());
        assert!(bus.remove(0x10).is_some());

        assert!(!bus.read(0x10, &mut [0]));
    }
}
