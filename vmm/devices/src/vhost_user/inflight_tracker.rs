//! Tracks which requests are in flight at a backend that does not record them itself.
//!
//! A backend without INFLIGHT_SHMFD that dies leaves only the rings. The used index is the number of requests it
//! completed, not which: a disk completes in any order. A backend that began at that index would do some completed
//! requests again, into memory that the driver uses for something else by now, and omit others for ever. So such a
//! backend signals an eventfd of the monitor's (the relay) in place of the interrupt, and at each signal the tracker
//! reads the new ring entries before they are overwritten. When the backend has died, the tracker rewrites the
//! available ring so that the next one begins with the requests in flight.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::io::Errno;
use vm_memory::{Address, ByteValued, Bytes, GuestAddress, GuestMemoryMmap};

use super::driver_setup::DriverSetup;
use super::memory;
use crate::virtio::ActiveQueue;

/// The offset of the first entry in either ring.
const ENTRIES: u64 = 4;

/// Tracks all queues of a device.
pub(super) struct InflightTracker {
    /// An epoll instance with all relays. It is edge-triggered, so that no relay is read: the backend could make that
    /// block.
    interrupts: OwnedFd,
    queues: Vec<TrackedQueue>,
}

struct TrackedQueue {
    queue: ActiveQueue,
    /// The backend signals it in place of the queue's interrupt.
    relay: OwnedFd,
    requests: Requests,
}

impl InflightTracker {
    /// A tracker for vrings that have just been set up: their indices are 0.
    pub(super) fn new(setup: &DriverSetup) -> Result<Self, Errno> {
        let interrupts = epoll::create(CreateFlags::CLOEXEC)?;
        let track = |queue: &ActiveQueue| {
            let relay = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
            let data = EventData::new_u64(queue.index.into());
            epoll::add(&interrupts, &relay, data, EventFlags::IN | EventFlags::ET)?;
            Ok(TrackedQueue {
                queue: queue.clone(),
                relay,
                requests: Requests::new(queue.size),
            })
        };
        let queues = setup
            .queues
            .iter()
            .map(track)
            .collect::<Result<_, Errno>>()?;
        Ok(Self { interrupts, queues })
    }

    /// Becomes readable when the backend has signalled a relay.
    pub(super) fn interrupts(&self) -> BorrowedFd<'_> {
        self.interrupts.as_fd()
    }

    /// The relay of queue `index`.
    pub(super) fn relay(&self, index: u16) -> Option<RawFd> {
        let mut queues = self.queues.iter();
        queues
            .find(|tracked| tracked.queue.index == index)
            .map(|tracked| tracked.relay.as_raw_fd())
    }

    /// Replaces the queue's interrupt.
    pub(super) fn set_call(&mut self, queue: &ActiveQueue) {
        for tracked in &mut self.queues {
            if tracked.queue.index == queue.index {
                tracked.queue.call = queue.call.clone();
            }
        }
    }

    /// Reads the new entries of all queues, since a driver may disable interrupts for a while, and raises the
    /// interrupts of those whose relay was signalled. Returns whether there was anything new.
    pub(super) fn pass_on(&mut self, memory: &GuestMemoryMmap) -> bool {
        let mut space = [MaybeUninit::<epoll::Event>::uninit(); 32];
        let no_wait = Timespec::default();
        // Events beyond the first 32 come with the next call.
        let signalled = epoll::wait(&self.interrupts, &mut space, Some(&no_wait));
        let signalled = signalled.map_or(&[][..], |(events, _)| events);
        let mut news = !signalled.is_empty();
        for tracked in &mut self.queues {
            // This comes before the interrupt, after which the driver may overwrite the entries.
            news |= tracked.requests.read_new(memory, &tracked.queue);
            let index = u64::from(tracked.queue.index);
            if signalled.iter().any(|event| event.data.u64() == index) {
                tracked.queue.call.signal();
            }
        }
        news
    }

    /// Rewrites the available rings so that the next backend begins with the requests in flight. Returns `false`, and
    /// changes nothing, if they are not known because entries were overwritten before they were read.
    pub(super) fn restore(&mut self, memory: &GuestMemoryMmap) -> bool {
        for tracked in &mut self.queues {
            tracked.requests.read_new(memory, &tracked.queue);
        }
        if !self
            .queues
            .iter()
            .all(|tracked| tracked.requests.are_known())
        {
            return false;
        }
        self.queues
            .iter()
            .all(|tracked| tracked.requests.restore(memory, &tracked.queue))
    }
}

/// The requests of one queue.
struct Requests {
    /// Up to where the available ring was read.
    available: u16,
    /// Up to where the used ring was read.
    used: u16,
    /// By the head of the descriptor chain.
    by_head: Vec<Request>,
    /// The number of requests made so far.
    clock: u64,
    /// Every entry was read since none was in flight.
    known: bool,
}

#[derive(Clone, Copy, Default)]
struct Request {
    /// 1 while it is in flight: how often it was made available, less how often it was used.
    in_flight: i32,
    /// The clock when it was made available.
    made: u64,
}

impl Requests {
    fn new(size: u16) -> Self {
        Self {
            available: 0,
            used: 0,
            by_head: vec![Request::default(); size.into()],
            clock: 0,
            known: true,
        }
    }

    fn size(&self) -> u16 {
        u16::try_from(self.by_head.len()).unwrap_or(u16::MAX)
    }

    fn are_known(&self) -> bool {
        self.known
    }

    /// Reads the new entries of both rings. Returns whether there are any.
    fn read_new(&mut self, memory: &GuestMemoryMmap, queue: &ActiveQueue) -> bool {
        // The used index is read first, so that each used entry's request is among the available ones.
        let used = memory::used_index(memory, queue);
        let available = memory::available_index(memory, queue);
        let news = (used, available) != (self.used, self.available);
        if available == used {
            // No request is in flight, whatever was missed before.
            self.by_head.fill(Request::default());
            self.known = true;
        } else if news && self.known {
            self.known = self.read_entries(memory, queue, used, available).is_some();
        }
        (self.used, self.available) = (used, available);
        news
    }

    /// Reads the entries up to these indices. Returns `None` if some were overwritten before they were read, or
    /// contradict each other.
    fn read_entries(
        &mut self,
        memory: &GuestMemoryMmap,
        queue: &ActiveQueue,
        used: u16,
        available: u16,
    ) -> Option<()> {
        let size = self.size();
        let (made, completed) = (
            available.wrapping_sub(self.available),
            used.wrapping_sub(self.used),
        );
        if made > size || completed > size {
            return None;
        }
        for number in 0..made {
            let place = self.available.wrapping_add(number) % size;
            let head: u16 = entry(memory, queue.available, place, 2)?;
            self.clock += 1;
            let request = self.by_head.get_mut(usize::from(u16::from_le(head)))?;
            request.in_flight += 1;
            request.made = self.clock;
        }
        for number in 0..completed {
            let place = self.used.wrapping_add(number) % size;
            let head: u32 = entry(memory, queue.used, place, 8)?;
            let head = usize::try_from(u32::from_le(head)).ok()?;
            self.by_head.get_mut(head)?.in_flight -= 1;
        }
        // The driver and the backend have gone on meanwhile, and may have overwritten what was just read.
        let later = memory::used_index(memory, queue).wrapping_sub(self.used);
        let more = memory::available_index(memory, queue).wrapping_sub(self.available);
        if later > size || more > size {
            return None;
        }
        let sound = |request: &Request| matches!(request.in_flight, 0 | 1);
        self.by_head.iter().all(sound).then_some(())
    }

    /// Writes the requests in flight into the entries of the available ring from the used index on, where the next
    /// backend begins.
    fn restore(&self, memory: &GuestMemoryMmap, queue: &ActiveQueue) -> bool {
        let heads = (0_u16..).zip(&self.by_head);
        let mut in_flight: Vec<(u64, u16)> = heads
            .filter(|(_, request)| request.in_flight != 0)
            .map(|(head, request)| (request.made, head))
            .collect();
        in_flight.sort_unstable();
        let count = self.available.wrapping_sub(self.used);
        if in_flight.len() != usize::from(count) {
            return false;
        }
        // The driver reads none of these entries, and writes only those after them.
        (0..count).zip(in_flight).all(|(number, (_, head))| {
            let place = self.used.wrapping_add(number) % self.size();
            let at = address(queue.available, place, 2);
            let there: Option<u16> = entry(memory, queue.available, place, 2);
            let is_there = there.is_some_and(|there| u16::from_le(there) == head);
            is_there || at.is_some_and(|at| memory.write_obj(head.to_le(), at).is_ok())
        })
    }
}

fn address(ring: u64, place: u16, size: u64) -> Option<GuestAddress> {
    GuestAddress(ring).checked_add(ENTRIES + u64::from(place) * size)
}

/// The first field of an entry. The transport has checked that the rings lie in RAM.
fn entry<T: ByteValued>(memory: &GuestMemoryMmap, ring: u64, place: u16, size: u64) -> Option<T> {
    memory.read_obj(address(ring, place, size)?).ok()
}
