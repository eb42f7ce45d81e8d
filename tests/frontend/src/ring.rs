//! The driver's side of a split virtqueue. (virtio 1.2, 2.7 "Split Virtqueues")

use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use crate::descriptors::readable;
use crate::{Guest, PATIENCE};

/// Each ring has this much guest memory, which is enough for 1024 descriptors.
const RING: u64 = 0x1_0000;
const AVAILABLE: u64 = 0x4000;
const USED: u64 = 0x8000;

/// The state of a ring that only the driver has.
#[derive(Debug)]
pub struct Ring {
    /// Which ring of the device it is.
    pub index: usize,
    /// How many descriptors it has.
    pub size: u16,
    /// The driver signals this one.
    pub kick: EventFd,
    /// The device signals this one when requests are completed.
    pub call: EventFd,
    /// The device signals this one when the ring is broken.
    pub err: EventFd,
    /// Descriptors for [`Guest::post`] to use, the next one last.
    pub free: Vec<u16>,
    /// The index of the available ring.
    pub available: u16,
    /// Up to which index of the used ring completions were taken.
    pub seen: u16,
}

/// One buffer of a chain.
#[derive(Clone, Copy, Debug)]
pub struct Buffer {
    /// Its guest address.
    pub address: u64,
    /// Its length in bytes.
    pub length: u32,
    /// Whether the device may write it, and not read it.
    pub writable: bool,
}

impl Ring {
    pub(crate) fn new(index: usize, size: u16) -> Self {
        let event = || EventFd::new(libc::EFD_NONBLOCK).unwrap();
        Self {
            index,
            size,
            kick: event(),
            call: event(),
            err: event(),
            free: (0..size).rev().collect(),
            available: 0,
            seen: 0,
        }
    }

    /// Where the memory of `rings` rings ends.
    pub(crate) fn end_of(rings: usize) -> u64 {
        RING * (rings as u64 + 1)
    }

    /// The guest address of the descriptor table.
    #[must_use]
    pub fn descriptors(&self) -> u64 {
        RING * (self.index as u64 + 1)
    }

    /// The guest address of the available ring.
    #[must_use]
    pub fn available_ring(&self) -> u64 {
        self.descriptors() + AVAILABLE
    }

    /// The guest address of the used ring.
    #[must_use]
    pub fn used_ring(&self) -> u64 {
        self.descriptors() + USED
    }

    /// How many chains were offered and are not completed, as far as completions were taken.
    #[must_use]
    pub fn outstanding(&self) -> u16 {
        self.available.wrapping_sub(self.seen)
    }
}

impl Guest {
    /// Writes a descriptor: address, length, flags, next.
    pub fn put_descriptor(&self, ring: usize, index: u16, words: (u64, u32, u16, u16)) {
        let at = self.rings[ring].descriptors() + 16 * u64::from(index);
        self.put(at, &words.0.to_le_bytes());
        self.put(at + 8, &words.1.to_le_bytes());
        self.put(at + 12, &words.2.to_le_bytes());
        self.put(at + 14, &words.3.to_le_bytes());
    }

    /// Makes the chain at `head` available.
    pub fn offer(&mut self, ring: usize, head: u16) {
        let state = &mut self.rings[ring];
        let entry = u64::from(state.available % state.size);
        let at = state.available_ring();
        state.available = state.available.wrapping_add(1);
        let index = state.available;
        self.put(at + 4 + 2 * entry, &head.to_le_bytes());
        self.memory
            .store(index.to_le(), GuestAddress(at + 2), Ordering::Release)
            .unwrap();
    }

    /// Makes a chain of these descriptors, each with its buffer, and offers it.
    pub fn post_in(&mut self, ring: usize, chain: &[(u16, Buffer)]) {
        for (at, &(descriptor, buffer)) in chain.iter().enumerate() {
            let next = chain.get(at + 1).map(|&(next, _)| next);
            let flags = u16::from(next.is_some()) | (u16::from(buffer.writable) << 1);
            let words = (buffer.address, buffer.length, flags, next.unwrap_or(0));
            self.put_descriptor(ring, descriptor, words);
        }
        self.offer(ring, chain[0].0);
    }

    /// Makes a chain of `buffers` with free descriptors and offers it. Returns its head.
    pub fn post(&mut self, ring: usize, buffers: &[Buffer]) -> u16 {
        let chain: Vec<(u16, Buffer)> = buffers
            .iter()
            .map(|&buffer| {
                let descriptor = self.rings[ring].free.pop().expect("no descriptor is free");
                (descriptor, buffer)
            })
            .collect();
        self.post_in(ring, &chain);
        chain[0].0
    }

    /// The descriptors of the chain at `head`.
    #[must_use]
    pub fn chain(&self, ring: usize, head: u16) -> Vec<u16> {
        let word = |index: u16, offset| {
            let at = self.rings[ring].descriptors() + 16 * u64::from(index) + offset;
            u16::from_le_bytes(self.get(at, 2).try_into().unwrap())
        };
        let mut indexes = vec![head];
        let mut last = head;
        while word(last, 12) & 1 != 0 {
            last = word(last, 14);
            indexes.push(last);
        }
        indexes
    }

    /// Frees the descriptors of a completed chain for [`post`](Self::post).
    pub fn reuse(&mut self, ring: usize, indexes: impl IntoIterator<Item = u16>) {
        self.rings[ring].free.extend(indexes);
    }

    /// Kicks the device.
    pub fn kick(&self, ring: usize) {
        self.rings[ring].kick.write(1).unwrap();
    }

    /// The index of the used ring.
    #[must_use]
    pub fn used_index(&self, ring: usize) -> u16 {
        let at = GuestAddress(self.rings[ring].used_ring() + 2);
        u16::from_le(self.memory.load(at, Ordering::Acquire).unwrap())
    }

    /// The head and length of the completion at index `number` of the used ring.
    #[must_use]
    pub fn used(&self, ring: usize, number: u16) -> (u32, u32) {
        let state = &self.rings[ring];
        let at = state.used_ring() + 4 + 8 * u64::from(number % state.size);
        let word = |at| u32::from_le_bytes(self.get(at, 4).try_into().unwrap());
        (word(at), word(at + 4))
    }

    /// The next completion, if there is one.
    pub fn next_used(&mut self, ring: usize) -> Option<(u32, u32)> {
        let seen = self.rings[ring].seen;
        if self.used_index(ring) == seen {
            return None;
        }
        self.rings[ring].seen = seen.wrapping_add(1);
        Some(self.used(ring, seen))
    }

    /// Asks the device for a call when there are `count` completions more than were taken. (EVENT_IDX)
    pub fn want_call(&self, ring: usize, count: u16) {
        let ring = &self.rings[ring];
        let event = ring.available_ring() + 4 + 2 * u64::from(ring.size);
        let last = ring.seen.wrapping_add(count - 1).to_le();
        let order = Ordering::SeqCst;
        self.memory.store(last, GuestAddress(event), order).unwrap();
        fence(order);
    }

    /// Waits until there are `count` completions more than were taken, or until `patience` has passed. Only the call
    /// eventfd wakes it. Returns whether there are.
    pub fn used_within(&self, ring: usize, count: u16, patience: Duration) -> bool {
        self.want_call(ring, count);
        let start = Instant::now();
        let more = || self.used_index(ring).wrapping_sub(self.rings[ring].seen);
        while more() < count {
            let left = patience.saturating_sub(start.elapsed());
            if !readable(&self.rings[ring].call, left) {
                return more() >= count;
            }
            let _ = self.rings[ring].call.read();
        }
        true
    }

    /// Waits for `count` completions and takes them. Only the call eventfd wakes it.
    pub fn wait_used(&mut self, ring: usize, count: u16) -> Vec<(u32, u32)> {
        let from = self.rings[ring].seen;
        self.want_call(ring, count);
        let start = Instant::now();
        while self.used_index(ring).wrapping_sub(from) < count {
            let left = PATIENCE.saturating_sub(start.elapsed());
            assert!(
                readable(&self.rings[ring].call, left),
                "no notification; {} of {count} are done",
                self.used_index(ring).wrapping_sub(from)
            );
            let _ = self.rings[ring].call.read();
        }
        self.rings[ring].seen = from.wrapping_add(count);
        (0..count)
            .map(|at| self.used(ring, from.wrapping_add(at)))
            .collect()
    }
}
