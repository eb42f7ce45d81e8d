//! Which requests a backend has not answered, where the backend keeps no notes of it.
//!
//! A backend without INFLIGHT_SHMFD that dies leaves nothing but the rings. The used ring's index says how many requests were
//! answered, and not which: a disk answers in any order. To go on from there would do some of them again that were answered, into
//! memory that the driver uses for something else by now, and leave others out for ever. So the interrupts of such a backend go
//! through the monitor, which looks at each what was asked and what was answered, before the rings' entries are overwritten. When the
//! backend is gone, the entries of the available ring that the next one is to begin with are made those that were not answered.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::io::Errno;
use vm_memory::{Address, ByteValued, Bytes, GuestAddress, GuestMemoryMmap};

use super::memory;
use super::vrings::Active;
use crate::virtio::ActiveQueue;

/// Where the entries of either ring begin.
const ENTRIES: u64 = 4;

/// All queues of a device.
pub(super) struct Unanswered {
    /// Edge-triggered, so that nothing is read from an eventfd that the backend has, too, and could make block.
    interrupts: OwnedFd,
    queues: Vec<Watched>,
}

struct Watched {
    queue: ActiveQueue,
    /// What the backend signals in place of the queue's interrupt.
    relay: OwnedFd,
    count: Count,
}

impl Unanswered {
    /// Begins with rings of which nothing was used yet.
    pub(super) fn watch(active: &Active) -> Result<Self, Errno> {
        let interrupts = epoll::create(CreateFlags::CLOEXEC)?;
        let watch = |queue: &ActiveQueue| {
            let relay = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
            let data = EventData::new_u64(queue.index.into());
            epoll::add(&interrupts, &relay, data, EventFlags::IN | EventFlags::ET)?;
            Ok(Watched {
                queue: queue.clone(),
                relay,
                count: Count::new(queue.size),
            })
        };
        let queues = active
            .queues
            .iter()
            .map(watch)
            .collect::<Result<_, Errno>>()?;
        Ok(Self { interrupts, queues })
    }

    /// Readable when a queue was answered.
    pub(super) fn interrupts(&self) -> BorrowedFd<'_> {
        self.interrupts.as_fd()
    }

    /// What the backend is to signal for this queue.
    pub(super) fn relay(&self, index: u16) -> Option<RawFd> {
        let mut queues = self.queues.iter();
        queues
            .find(|watched| watched.queue.index == index)
            .map(|watched| watched.relay.as_raw_fd())
    }

    /// The queue's interrupt is another one now.
    pub(super) fn set_call(&mut self, queue: &ActiveQueue) {
        for watched in &mut self.queues {
            if watched.queue.index == queue.index {
                watched.queue.call = queue.call.clone();
            }
        }
    }

    /// Looks at all queues, as a driver may do without interrupts for a while, and passes on the interrupts of those that were answered.
    /// Whether there was anything new.
    pub(super) fn pass_on(&mut self, memory: &GuestMemoryMmap) -> bool {
        let mut space = [MaybeUninit::<epoll::Event>::uninit(); 32];
        let at_once = Timespec::default();
        // What is not reported now is reported the next time.
        let answered = epoll::wait(&self.interrupts, &mut space, Some(&at_once));
        let answered = answered.map_or(&[][..], |(events, _)| events);
        let mut news = !answered.is_empty();
        for watched in &mut self.queues {
            // Before the interrupt, after which the driver may overwrite the entries.
            news |= watched.count.look(memory, &watched.queue);
            let index = u64::from(watched.queue.index);
            if answered.iter().any(|event| event.data.u64() == index) {
                watched.queue.call.signal();
            }
        }
        news
    }

    /// Has the next backend find what was not answered, and nothing else. `false` if it is not known, as there was too much at a time;
    /// then nothing was changed.
    pub(super) fn restore(&mut self, memory: &GuestMemoryMmap) -> bool {
        for watched in &mut self.queues {
            watched.count.look(memory, &watched.queue);
        }
        if !self.queues.iter().all(|watched| watched.count.is_known()) {
            return false;
        }
        self.queues
            .iter()
            .all(|watched| watched.count.restore(memory, &watched.queue))
    }
}

/// What was asked and answered in one queue.
struct Count {
    /// How far either ring was looked at.
    available: u16,
    used: u16,
    /// For each head of a descriptor chain, if it is a request that was not answered, when it was made.
    requests: Vec<Request>,
    clock: u64,
    /// Every entry was seen since a moment at which nothing was unanswered.
    known: bool,
}

#[derive(Clone, Copy, Default)]
struct Request {
    /// How often it was made, less how often it was answered.
    unanswered: i32,
    made: u64,
}

impl Count {
    fn new(size: u16) -> Self {
        Self {
            available: 0,
            used: 0,
            requests: vec![Request::default(); size.into()],
            clock: 0,
            known: true,
        }
    }

    fn size(&self) -> u16 {
        u16::try_from(self.requests.len()).unwrap_or(u16::MAX)
    }

    fn is_known(&self) -> bool {
        self.known
    }

    /// Takes note of what is new in the rings; whether there is anything.
    fn look(&mut self, memory: &GuestMemoryMmap, queue: &ActiveQueue) -> bool {
        // In this order: what was answered was asked before.
        let used = memory::used_index(memory, queue);
        let available = memory::available_index(memory, queue);
        let news = (used, available) != (self.used, self.available);
        if available == used {
            // Nothing is unanswered, whatever was before.
            self.requests.fill(Request::default());
            self.known = true;
        } else if news && self.known {
            self.known = self.take(memory, queue, used, available).is_some();
        }
        (self.used, self.available) = (used, available);
        news
    }

    /// Takes note of the entries up to these. `None` if some were overwritten before they were seen, or make no sense.
    fn take(
        &mut self,
        memory: &GuestMemoryMmap,
        queue: &ActiveQueue,
        used: u16,
        available: u16,
    ) -> Option<()> {
        let size = self.size();
        let (asked, answered) = (
            available.wrapping_sub(self.available),
            used.wrapping_sub(self.used),
        );
        if asked > size || answered > size {
            return None;
        }
        for number in 0..asked {
            let place = self.available.wrapping_add(number) % size;
            let head: u16 = entry(memory, queue.available, place, 2)?;
            self.clock += 1;
            let request = self.requests.get_mut(usize::from(u16::from_le(head)))?;
            request.unanswered += 1;
            request.made = self.clock;
        }
        for number in 0..answered {
            let place = self.used.wrapping_add(number) % size;
            let head: u32 = entry(memory, queue.used, place, 8)?;
            let head = usize::try_from(u32::from_le(head)).ok()?;
            self.requests.get_mut(head)?.unanswered -= 1;
        }
        // The driver and the backend have gone on meanwhile.
        let later = memory::used_index(memory, queue).wrapping_sub(self.used);
        let more = memory::available_index(memory, queue).wrapping_sub(self.available);
        if later > size || more > size {
            return None;
        }
        let sound = |request: &Request| matches!(request.unanswered, 0 | 1);
        self.requests.iter().all(sound).then_some(())
    }

    /// Puts the requests that were not answered where the next backend begins.
    fn restore(&self, memory: &GuestMemoryMmap, queue: &ActiveQueue) -> bool {
        let heads = (0_u16..).zip(&self.requests);
        let mut unanswered: Vec<(u64, u16)> = heads
            .filter(|(_, request)| request.unanswered != 0)
            .map(|(head, request)| (request.made, head))
            .collect();
        unanswered.sort_unstable();
        let count = self.available.wrapping_sub(self.used);
        if unanswered.len() != usize::from(count) {
            return false;
        }
        // The driver writes the entries after these, and reads none.
        (0..count).zip(unanswered).all(|(number, (_, head))| {
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

/// The first field of an entry. The transport has made sure that the rings lie in RAM.
fn entry<T: ByteValued>(memory: &GuestMemoryMmap, ring: u64, place: u16, size: u64) -> Option<T> {
    memory.read_obj(address(ring, place, size)?).ok()
}
