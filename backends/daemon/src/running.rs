//! A running ring: takes from the available ring and puts into the used ring. (virtio 1.2, 2.7 "Split Virtqueues")

use std::collections::VecDeque;
use std::sync::atomic::{Ordering, fence};

use virtio_queue::{Queue as SplitQueue, QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryMmap};

use crate::chain::{Chain, Segment, Table, walk};
use crate::error::RingError;
use crate::inflight::InflightRing;
use crate::sigbus;

/// How many chains' allocations a ring keeps for reuse.
const SPARE_CHAINS: usize = 64;

/// How a ring goes on after a turn.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Turn {
    /// Wait for the next kick, or for an event of the device.
    Wait,
    /// There is more: another turn is due.
    Again,
}

/// The state of a running ring.
#[derive(Debug)]
pub(crate) struct Running {
    queue: SplitQueue,
    inflight: Option<InflightRing>,
    /// Requests that another process left in flight, in the order in which it took them.
    resubmit: VecDeque<u16>,
    /// Allocations for reuse.
    spare: Vec<Vec<Segment>>,
    /// The allocation of a list of heads, for reuse.
    heads: Vec<u16>,
    /// How many more chains may be taken in this turn.
    budget: u16,
    /// The available ring was found empty.
    drained: bool,
    /// At which index.
    drained_at: u16,
    /// The device needs more chains than there are: the driver has to kick when it adds one.
    wants_more: bool,
    /// How many requests were completed since the driver was last notified.
    completed: u16,
}

impl Running {
    /// Starts at `base`, as the frontend says, or with an in-flight record where the used ring and the record say.
    pub(crate) fn start(
        mut queue: SplitQueue,
        memory: &GuestMemoryMmap,
        base: u16,
        inflight: Option<InflightRing>,
    ) -> Result<Self, RingError> {
        let used_idx = queue
            .used_idx(memory, Ordering::Acquire)
            .map_err(|_| RingError::Addresses)?
            .0;
        queue.set_next_used(used_idx);
        let (inflight, resubmit) = match inflight {
            Some(mut record) => {
                let left = record.recover(used_idx)?;
                // Each request taken so far is either in the used ring or still in flight.
                queue.set_next_avail(used_idx.wrapping_add(left.len() as u16));
                (Some(record), left.into())
            }
            None => {
                queue.set_next_avail(base);
                (None, VecDeque::new())
            }
        };
        Ok(Self {
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
        })
    }

    /// The index in the available ring from which to go on.
    pub(crate) fn next_available(&self) -> u16 {
        self.queue.next_avail()
    }

    /// Clears the in-flight record of a broken ring, whose requests must not come back when the ring is set up again.
    pub(crate) fn forget(&self) {
        if let Some(record) = &self.inflight {
            let _ = record.forget();
        }
    }

    pub(crate) fn begin(&mut self, memory: &GuestMemoryMmap) -> Result<(), RingError> {
        self.budget = self.queue.size();
        self.drained = false;
        self.wants_more = false;
        self.queue
            .disable_notification(memory)
            .map_err(|_| RingError::OutsideMemory)
    }

    pub(crate) fn end(&mut self, memory: &GuestMemoryMmap) -> Result<Turn, RingError> {
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

    /// Has the driver kick when it adds to the chains that were available, not all of which are taken.
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
        // The driver must see the new event index before the available index is read: else a chain added between goes
        // unnoticed.
        fence(Ordering::SeqCst);
        let available = self
            .queue
            .avail_idx(memory, Ordering::Acquire)
            .map_err(|_| RingError::OutsideMemory)?
            .0;
        let more = available != self.drained_at;
        Ok(if more { Turn::Again } else { Turn::Wait })
    }

    /// Whether the driver wants a notification for what was completed since the last call of this. (virtio 1.2,
    /// 2.7.7.2)
    ///
    /// `SplitQueue::needs_notification` cannot be used: it counts only what went through `SplitQueue::add_used`.
    pub(crate) fn take_notification(
        &mut self,
        memory: &GuestMemoryMmap,
    ) -> Result<bool, RingError> {
        let completed = std::mem::take(&mut self.completed);
        if completed == 0 || !self.queue.event_idx_enabled() {
            return Ok(completed != 0);
        }
        // The driver must see the used index before its event index is read.
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

    /// Writes an entry of the used ring, `ahead` places beyond the used index.
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

    /// Moves the used index by `count`.
    fn add_used(&mut self, memory: &GuestMemoryMmap, count: u16) -> Result<(), RingError> {
        let used_idx = self.queue.next_used().wrapping_add(count);
        GuestAddress(self.queue.used_ring())
            .checked_add(2)
            .and_then(|at| memory.store(used_idx.to_le(), at, Ordering::Release).ok())
            .ok_or(RingError::OutsideMemory)?;
        self.queue.set_next_used(used_idx);
        self.completed = self.completed.saturating_add(count);
        Ok(())
    }

    /// The head of the next request, and whether another process left it in flight.
    pub(crate) fn next_head(
        &mut self,
        memory: &GuestMemoryMmap,
    ) -> Result<Option<(u16, bool)>, RingError> {
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

    /// Whether no more can be taken in this turn.
    pub(crate) fn turn_is_over(&self) -> bool {
        self.budget == 0
    }

    /// Has the driver kick when it adds a chain.
    pub(crate) fn want_more(&mut self) {
        self.wants_more = true;
    }

    /// The chain at `head`.
    pub(crate) fn chain(
        &mut self,
        memory: &GuestMemoryMmap,
        head: u16,
        resubmitted: bool,
    ) -> Result<Chain, RingError> {
        let table = Table {
            address: GuestAddress(self.queue.desc_table()),
            entries: self.queue.size(),
        };
        let mut segments = self.spare.pop().unwrap_or_default();
        let readable = walk(memory, table, head, &mut segments)?;
        Ok(Chain {
            head,
            resubmitted,
            segments,
            readable,
        })
    }

    /// Puts back the request taken last.
    pub(crate) fn give_back(&mut self, chain: Chain) -> Result<(), RingError> {
        self.drained = false;
        if chain.resubmitted {
            self.resubmit.push_front(chain.head);
        } else {
            self.queue.go_to_previous_position();
            if let Some(record) = &mut self.inflight {
                record.untake(chain.head)?;
            }
        }
        self.keep(chain.segments);
        Ok(())
    }

    /// Completes `chains`, which the driver sees all at once.
    pub(crate) fn complete(
        &mut self,
        memory: &GuestMemoryMmap,
        chains: impl IntoIterator<Item = (Chain, u32)>,
    ) -> Result<(), RingError> {
        // What was read may not be the driver's data, and what was written is gone.
        if sigbus::is_lost() {
            return Err(RingError::MemoryLost);
        }
        let mut heads = std::mem::take(&mut self.heads);
        heads.clear();
        for (ahead, (chain, written)) in (0u16..).zip(chains) {
            if let Some(record) = &self.inflight {
                record.done(chain.head)?;
            }
            self.write_used(memory, ahead, chain.head, written)?;
            heads.push(chain.head);
            self.keep(chain.segments);
        }
        self.add_used(memory, heads.len() as u16)?;
        if let Some(record) = &self.inflight {
            record.used(&heads, self.queue.next_used())?;
        }
        self.heads = heads;
        Ok(())
    }

    /// Keeps a chain's allocation for reuse.
    fn keep(&mut self, segments: Vec<Segment>) {
        if self.spare.len() < SPARE_CHAINS {
            self.spare.push(segments);
        }
    }
}
