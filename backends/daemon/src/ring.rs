//! One ring of the device: what the frontend has said about it, and, while it runs, the queue itself.

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use rustix::fs::OFlags;
use virtio_queue::{Queue as SplitQueue, QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryMmap};

use crate::chain::{Chain, Segment, Table, walk};
use crate::error::RingError;
use crate::inflight::InflightRing;
use crate::memory::Memory;

/// The longest ring: as QEMU has it.
pub const MAX_RING_SIZE: u16 = 1024;

/// How many spare chains a ring keeps the memory of.
const SPARE_CHAINS: usize = 64;

/// The three parts of a ring, as addresses of the frontend.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RingAddresses {
    pub(crate) descriptors: u64,
    pub(crate) available: u64,
    pub(crate) used: u64,
}

/// Whether a ring is served.
#[derive(Debug)]
enum State {
    /// Not set up, or stopped by the frontend.
    Stopped,
    Running(Box<Running>),
    /// The driver or the frontend broke it; it stays so until the frontend stops it. Keeps the available index to tell.
    Broken(u16),
}

#[derive(Debug)]
struct Running {
    queue: SplitQueue,
    inflight: Option<InflightRing>,
    /// Requests that another process took and did not complete, in their order.
    resubmit: VecDeque<u16>,
    spare: Vec<Vec<Segment>>,
    /// The memory of a list of heads, between uses.
    heads: Vec<u16>,
    /// Chains that may still be taken before the other rings have their turn.
    budget: u16,
    /// The last look at the available ring found nothing.
    drained: bool,
    /// Where in the available ring that was.
    drained_at: u16,
    /// What is there is not enough: the driver is to tell of more.
    wants_more: bool,
    /// How many requests were completed that the driver may have to be told about.
    completed: u16,
}

#[derive(Debug)]
pub(crate) struct Ring {
    pub(crate) index: u16,
    pub(crate) size: u16,
    pub(crate) base: u16,
    pub(crate) addresses: Option<RingAddresses>,
    pub(crate) enabled: bool,
    kick: Option<OwnedFd>,
    call: Option<OwnedFd>,
    err: Option<OwnedFd>,
    state: State,
}

/// What a ring does after it was given a turn.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Turn {
    /// Wait for the next kick, or for the device to come back to it.
    Wait,
    /// There is more; give it another turn.
    Again,
}

impl Ring {
    pub(crate) fn new(index: u16) -> Self {
        Self {
            index,
            size: 0,
            base: 0,
            addresses: None,
            enabled: false,
            kick: None,
            call: None,
            err: None,
            state: State::Stopped,
        }
    }

    pub(crate) fn kick(&self) -> Option<&OwnedFd> {
        self.kick.as_ref()
    }

    /// Takes the descriptor that the driver kicks by, and gives the old one, which may still be watched.
    pub(crate) fn set_kick(&mut self, file: Option<File>) -> Option<OwnedFd> {
        std::mem::replace(&mut self.kick, file.map(OwnedFd::from))
    }

    /// Takes the descriptor to notify the driver by, and uses it at once: completions may have come before it.
    pub(crate) fn set_call(&mut self, file: Option<File>) {
        self.call = file.map(OwnedFd::from);
        if let Some(call) = &self.call {
            never_block(call);
            signal(call);
        }
    }

    pub(crate) fn set_err(&mut self, file: Option<File>) {
        self.err = file.map(OwnedFd::from);
        if let Some(err) = &self.err {
            never_block(err);
        }
    }

    pub(crate) fn is_running(&self) -> bool {
        matches!(self.state, State::Running(_)) && self.enabled
    }

    pub(crate) fn is_stopped(&self) -> bool {
        matches!(self.state, State::Stopped)
    }

    /// Everything is known that the ring needs to run.
    pub(crate) fn can_start(&self) -> bool {
        self.is_stopped()
            && self.enabled
            && self.size != 0
            && self.kick.is_some()
            && self.addresses.is_some()
    }

    /// Starts the ring. With an in-flight record, the used ring and the record tell where to go on; else the frontend's base does.
    pub(crate) fn start(
        &mut self,
        memory: &Memory,
        event_idx: bool,
        inflight: Option<InflightRing>,
    ) -> Result<(), RingError> {
        let mut queue = self.queue(memory)?;
        queue.set_event_idx(event_idx);
        let used_idx = queue
            .used_idx(&**memory.guest(), Ordering::Acquire)
            .map_err(|_| RingError::Addresses)?
            .0;
        queue.set_next_used(used_idx);
        let (inflight, resubmit) = match inflight {
            Some(mut record) => {
                let left = record.recover(used_idx)?;
                // Each request taken so far is either used or still in flight.
                queue.set_next_avail(used_idx.wrapping_add(left.len() as u16));
                (Some(record), left.into())
            }
            None => {
                queue.set_next_avail(self.base);
                (None, VecDeque::new())
            }
        };
        self.state = State::Running(Box::new(Running {
            queue,
            inflight,
            resubmit,
            spare: Vec::new(),
            heads: Vec::new(),
            budget: 0,
            drained: false,
            drained_at: 0,
            wants_more: false,
            completed: 0,
        }));
        Ok(())
    }

    fn queue(&self, memory: &Memory) -> Result<SplitQueue, RingError> {
        let addresses = self.addresses.ok_or(RingError::Addresses)?;
        let place = |user| memory.translate(user).ok_or(RingError::Addresses);
        let refused = |_| RingError::Addresses;
        let mut queue = SplitQueue::new(MAX_RING_SIZE).map_err(refused)?;
        queue.try_set_size(self.size).map_err(refused)?;
        queue
            .try_set_desc_table_address(place(addresses.descriptors)?)
            .map_err(refused)?;
        queue
            .try_set_avail_ring_address(place(addresses.available)?)
            .map_err(refused)?;
        queue
            .try_set_used_ring_address(place(addresses.used)?)
            .map_err(refused)?;
        queue.set_ready(true);
        if !queue.is_valid(&**memory.guest()) {
            return Err(RingError::Addresses);
        }
        Ok(queue)
    }

    /// Stops the ring, and gives the index in the available ring from which to go on. (GET_VRING_BASE)
    pub(crate) fn stop(&mut self) -> u16 {
        if let State::Running(running) = &self.state {
            self.base = running.queue.next_avail();
        } else if let State::Broken(base) = self.state {
            self.base = base;
        }
        self.state = State::Stopped;
        self.kick = None;
        self.call = None;
        self.base
    }

    /// Stops serving the ring and tells the frontend, if it wants to know.
    pub(crate) fn break_down(&mut self) {
        let base = match &self.state {
            State::Running(running) => {
                // What the driver broke must not come back after a restart, on a ring set up anew.
                if let Some(record) = &running.inflight {
                    let _ = record.forget();
                }
                running.queue.next_avail()
            }
            State::Broken(base) => *base,
            State::Stopped => self.base,
        };
        self.state = State::Broken(base);
        if let Some(err) = &self.err {
            signal(err);
        }
    }

    /// Lets `serve` take and complete requests, tells the driver, and says whether there is more to do.
    pub(crate) fn turn(
        &mut self,
        memory: &Arc<GuestMemoryMmap>,
        serve: impl FnOnce(&mut Queue<'_>) -> Result<(), RingError>,
    ) -> Result<Turn, RingError> {
        let State::Running(running) = &mut self.state else {
            return Ok(Turn::Wait);
        };
        running.begin(memory)?;
        let served = serve(&mut Queue {
            index: self.index,
            running,
            memory,
        });
        // What is done is done: the driver is told even if the rest broke the ring.
        let told = running.take_notification(memory);
        if let (Ok(true), Some(call)) = (&told, &self.call) {
            signal(call);
        }
        served?;
        told?;
        running.end(memory)
    }
}

impl Running {
    fn begin(&mut self, memory: &GuestMemoryMmap) -> Result<(), RingError> {
        self.budget = self.queue.size();
        self.drained = false;
        self.wants_more = false;
        self.queue
            .disable_notification(memory)
            .map_err(|_| RingError::OutsideMemory)
    }

    fn end(&mut self, memory: &GuestMemoryMmap) -> Result<Turn, RingError> {
        if self.wants_more {
            return self.wait_for_more(memory);
        }
        if !self.drained {
            let more = self.budget == 0;
            return Ok(if more { Turn::Again } else { Turn::Wait });
        }
        let more = self
            .queue
            .enable_notification(memory)
            .map_err(|_| RingError::OutsideMemory)?;
        Ok(if more { Turn::Again } else { Turn::Wait })
    }

    /// Has the driver kick when it adds to what was there at the last look, which is not what has been taken.
    fn wait_for_more(&mut self, memory: &GuestMemoryMmap) -> Result<Turn, RingError> {
        self.queue
            .enable_notification(memory)
            .map_err(|_| RingError::OutsideMemory)?;
        if self.queue.event_idx_enabled() {
            let at = 4 + 8 * u64::from(self.queue.size());
            GuestAddress(self.queue.used_ring())
                .checked_add(at)
                .and_then(|at| {
                    let event = self.drained_at.to_le();
                    memory.store(event, at, Ordering::Relaxed).ok()
                })
                .ok_or(RingError::OutsideMemory)?;
        }
        // The wish is visible before it is looked whether it comes too late.
        fence(Ordering::SeqCst);
        let available = self
            .queue
            .avail_idx(memory, Ordering::Acquire)
            .map_err(|_| RingError::OutsideMemory)?
            .0;
        let more = available != self.drained_at;
        Ok(if more { Turn::Again } else { Turn::Wait })
    }

    /// Whether the driver wants to be told about what was completed since this was asked before. (virtio 1.2, 2.7.7.2)
    ///
    /// Not `SplitQueue::needs_notification`: it knows only of what went through `SplitQueue::add_used`.
    fn take_notification(&mut self, memory: &GuestMemoryMmap) -> Result<bool, RingError> {
        let completed = std::mem::take(&mut self.completed);
        if completed == 0 || !self.queue.event_idx_enabled() {
            return Ok(completed != 0);
        }
        // What was completed is visible before the driver's wish is read.
        fence(Ordering::SeqCst);
        let at = 4 + 2 * u64::from(self.queue.size());
        let event = GuestAddress(self.queue.avail_ring())
            .checked_add(at)
            .and_then(|at| memory.load::<u16>(at, Ordering::Relaxed).ok())
            .ok_or(RingError::OutsideMemory)?;
        let new = self.queue.next_used();
        let past_event = new.wrapping_sub(u16::from_le(event)).wrapping_sub(1);
        Ok(past_event < completed)
    }

    /// Writes an entry `ahead` places beyond what the driver has seen of the used ring.
    fn write_used(
        &self,
        memory: &GuestMemoryMmap,
        ahead: u16,
        head: u16,
        written: u32,
    ) -> Result<(), RingError> {
        let place = self.queue.next_used().wrapping_add(ahead) % self.queue.size();
        let mut entry = [0; 8];
        entry[..4].copy_from_slice(&u32::from(head).to_le_bytes());
        entry[4..].copy_from_slice(&written.to_le_bytes());
        GuestAddress(self.queue.used_ring())
            .checked_add(4 + 8 * u64::from(place))
            .and_then(|at| memory.write_slice(&entry, at).ok())
            .ok_or(RingError::OutsideMemory)
    }

    /// Shows the driver `count` more entries of the used ring.
    fn show_used(&mut self, memory: &GuestMemoryMmap, count: u16) -> Result<(), RingError> {
        let used_idx = self.queue.next_used().wrapping_add(count);
        GuestAddress(self.queue.used_ring())
            .checked_add(2)
            .and_then(|at| memory.store(used_idx.to_le(), at, Ordering::Release).ok())
            .ok_or(RingError::OutsideMemory)?;
        self.queue.set_next_used(used_idx);
        self.completed = self.completed.saturating_add(count);
        Ok(())
    }

    /// The head of the next request, and whether it is one to be done again.
    fn next_head(&mut self, memory: &GuestMemoryMmap) -> Result<Option<(u16, bool)>, RingError> {
        if self.budget == 0 {
            return Ok(None);
        }
        if let Some(head) = self.resubmit.pop_front() {
            self.budget -= 1;
            return Ok(Some((head, true)));
        }
        let mut available = self
            .queue
            .iter(memory)
            .map_err(|_| RingError::AvailableIndex)?;
        let Some(chain) = available.next() else {
            self.drained = true;
            self.drained_at = self.queue.next_avail();
            return Ok(None);
        };
        let head = chain.head_index();
        if head >= self.queue.size() {
            return Err(RingError::DescriptorIndex(head));
        }
        self.budget -= 1;
        if let Some(record) = &mut self.inflight {
            record.take(head)?;
        }
        Ok(Some((head, false)))
    }
}

/// A ring that runs, during one turn of it.
#[derive(Debug)]
pub struct Queue<'a> {
    index: u16,
    running: &'a mut Running,
    memory: &'a Arc<GuestMemoryMmap>,
}

impl<'a> Queue<'a> {
    /// Which ring of the device this is.
    #[must_use]
    pub fn index(&self) -> u16 {
        self.index
    }

    /// The guest's memory, where the buffers of chains are. Whoever uses it beyond this turn keeps a clone.
    #[must_use]
    pub fn memory(&self) -> &'a Arc<GuestMemoryMmap> {
        self.memory
    }

    /// Whether it is the turn of another ring: nothing more can be taken before the next turn, which comes without a kick.
    #[must_use]
    pub fn turn_is_over(&self) -> bool {
        self.running.budget == 0
    }

    /// Takes the next request: those left by a process that died come first, in their old order. `None` when there is none, or when it
    /// is the turn of another ring; the daemon comes back in either case.
    ///
    /// # Errors
    /// When the ring or the chain makes no sense; hand it on and the ring is taken out of service.
    pub fn pop(&mut self) -> Result<Option<Chain>, RingError> {
        let Some((head, resubmitted)) = self.running.next_head(self.memory)? else {
            return Ok(None);
        };
        let table = Table {
            address: GuestAddress(self.running.queue.desc_table()),
            entries: self.running.queue.size(),
        };
        let mut segments = self.running.spare.pop().unwrap_or_default();
        let readable = walk(self.memory, table, head, &mut segments)?;
        Ok(Some(Chain {
            head,
            resubmitted,
            segments,
            readable,
        }))
    }

    /// Says that what is there, all of which is taken or given back, is not enough: the next turn comes when the driver adds to it.
    pub fn want_more(&mut self) {
        self.running.wants_more = true;
    }

    /// Puts back a request that was taken and not touched, as if it had not been taken. Of several, the last taken goes back first.
    ///
    /// The device then comes back by an event of its own: the driver is not asked to tell of more, for there is enough; unless
    /// [`want_more`](Self::want_more) says otherwise. What was taken counts for the turn all the same.
    ///
    /// # Errors
    /// When the in-flight record cannot be kept.
    pub fn give_back(&mut self, chain: Chain) -> Result<(), RingError> {
        let running = &mut *self.running;
        running.drained = false;
        if chain.resubmitted {
            running.resubmit.push_front(chain.head);
        } else {
            running.queue.go_to_previous_position();
            if let Some(record) = &mut running.inflight {
                record.untake(chain.head)?;
            }
        }
        running.keep(chain.segments);
        Ok(())
    }

    /// Tells the driver that a request is done and that `written` bytes of its writable buffers were filled. The notification follows
    /// at the end of the turn.
    ///
    /// # Errors
    /// When the used ring cannot be written.
    pub fn complete(&mut self, chain: Chain, written: u32) -> Result<(), RingError> {
        self.complete_together([(chain, written)])
    }

    /// The same for several requests, which the driver sees all at once: as a packet in merged buffers wants it (virtio 1.2, 5.1.6.3.2).
    ///
    /// # Errors
    /// When the used ring cannot be written.
    pub fn complete_together(
        &mut self,
        chains: impl IntoIterator<Item = (Chain, u32)>,
    ) -> Result<(), RingError> {
        let running = &mut *self.running;
        let mut heads = std::mem::take(&mut running.heads);
        heads.clear();
        for (ahead, (chain, written)) in (0u16..).zip(chains) {
            if let Some(record) = &running.inflight {
                record.done(chain.head)?;
            }
            running.write_used(self.memory, ahead, chain.head, written)?;
            heads.push(chain.head);
            running.keep(chain.segments);
        }
        running.show_used(self.memory, heads.len() as u16)?;
        if let Some(record) = &running.inflight {
            record.told(&heads, running.queue.next_used())?;
        }
        running.heads = heads;
        Ok(())
    }
}

impl Running {
    fn keep(&mut self, segments: Vec<Segment>) {
        if self.spare.len() < SPARE_CHAINS {
            self.spare.push(segments);
        }
    }
}

/// The other end may be anything; a full pipe must not stop this process.
fn never_block(fd: &OwnedFd) {
    if let Ok(flags) = rustix::fs::fcntl_getfl(fd) {
        // Where it cannot be set, the descriptor is none that blocks.
        let _ = rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK);
    }
}

/// A counter that is full has been signalled already; a peer that is gone needs no signal.
fn signal(fd: &OwnedFd) {
    let _ = rustix::io::write(fd, &1u64.to_ne_bytes());
}
