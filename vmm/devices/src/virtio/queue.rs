//! A virtqueue's registers, and whether what the driver wrote there makes a queue.

use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::pci::NO_VECTOR;

/// One queue's registers (virtio 1.2 §4.1.4.3).
#[derive(Clone, Debug)]
pub(super) struct Queue {
    pub(super) max_size: u16,
    pub(super) size: u16,
    pub(super) enabled: bool,
    pub(super) vector: u16,
    pub(super) descriptors: u64,
    pub(super) available: u64,
    pub(super) used: u64,
}

impl Queue {
    pub(super) fn new(max_size: u16) -> Self {
        Self {
            max_size,
            size: max_size,
            enabled: false,
            vector: NO_VECTOR,
            descriptors: 0,
            available: 0,
            used: 0,
        }
    }

    /// Takes a new size, unless it is none (virtio 1.2 §2.7: a power of two, not above the maximum).
    pub(super) fn set_size(&mut self, size: u16) {
        if size.is_power_of_two() && size <= self.max_size {
            self.size = size;
        }
    }

    /// Whether the three parts of a split queue (§2.7) are aligned and each lies in guest RAM.
    pub(super) fn is_sound(&self, memory: &GuestMemoryMmap) -> bool {
        let size = u64::from(self.size);
        let parts = [
            (self.descriptors, 16, 16 * size),
            // Flags, index, the ring and, with EVENT_IDX, one index more.
            (self.available, 2, 6 + 2 * size),
            (self.used, 4, 6 + 8 * size),
        ];
        parts.iter().all(|&(address, alignment, len)| {
            address.is_multiple_of(alignment) && in_one_region(memory, address, len)
        })
    }
}

fn in_one_region(memory: &GuestMemoryMmap, address: u64, len: u64) -> bool {
    let address = GuestAddress(address);
    memory.find_region(address).is_some_and(|region| {
        let within = address.unchecked_offset_from(region.start_addr());
        region.len() - within >= len
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const REGION: usize = 0x10000;

    fn memory() -> GuestMemoryMmap {
        let high = GuestAddress(1 << 32);
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), REGION), (high, REGION)]).unwrap()
    }

    fn queue(size: u16, descriptors: u64, available: u64, used: u64) -> Queue {
        Queue {
            size,
            descriptors,
            available,
            used,
            ..Queue::new(256)
        }
    }

    #[test]
    fn a_queue_in_ram_is_sound_to_the_last_byte() {
        let end = REGION as u64;
        // 8 descriptors; the rings take 22 and 70 bytes.
        assert!(queue(8, end - 128, 0, 0).is_sound(&memory()));
        assert!(queue(8, 0, end - 22, 0).is_sound(&memory()));
        assert!(queue(8, 0, 0, end - 72).is_sound(&memory()));
        assert!(queue(8, 1 << 32, 0, 1 << 32).is_sound(&memory()));
    }

    #[test]
    fn a_queue_out_of_ram_or_out_of_line_is_not() {
        let end = REGION as u64;
        for (descriptors, available, used) in [
            (end - 112, 0, 0),
            (0, end - 20, 0),
            (0, 0, end - 68),
            (end, 0, 0),
            (u64::MAX - 15, 0, 0),
            (0, u64::MAX - 1, 0),
            (0, 0, u64::MAX - 3),
            (8, 0, 0),
            (0, 1, 0),
            (0, 0, 2),
        ] {
            let queue = queue(8, descriptors, available, used);
            assert!(!queue.is_sound(&memory()), "{queue:x?}");
        }
    }

    #[test]
    fn sizes_that_are_none_leave_the_size_as_it_was() {
        let mut queue = Queue::new(256);
        for size in [0, 3, 255, 257, 512, 0xffff] {
            queue.set_size(size);
            assert_eq!(queue.size, 256);
        }
        queue.set_size(16);
        assert_eq!(queue.size, 16);
    }
}
