//! A ring that runs: what is taken from the available ring, and what is put into the used one. (virtio 1.2, 2.7 "Split Virtqueues")

use std::collections::VecDeque;
use std::sync::atomic::{Ordering, fence};

use virtio_queue::{Queue as SplitQueue, QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryMmap};

use crate::chain::{Chain, Segment, Table, walk};
use crate::error::RingError;
use crate::inflight::InflightRing;
use crate::sigbus;

/// How many spare chains a ring keeps the memory of.
const SPARE_CHAINS: usize = 64;

/// What a ring does after it was given a turn.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Turn {
    /// Wait for the next kick, or for the device to come back to it.
    Wait,
    /// There is more; give it another turn.
    Again,
}

/// How a ring goes on.
#[derive(Debug)]
pub(crate) struct Running {
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

impl Running {
    /// Goes on where the frontend says (`base`); with an in-flight record, where the used ring and the record say.
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
                // Each request taken so far is either used or still in flight.
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

    /// What the driver broke must not come back after a restart, on a ring set up anew.
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
    pub(crate) fn take_notification(
        &mut self,
        memory: &GuestMemoryMmap,
    ) -> Result<bool, RingError> {
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

    /// Whether it is the turn of another ring.
    pub(crate) fn turn_is_over(&self) -> bool {
        self.budget == 0
    }

    /// What is there is not enough.
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

    /// Shows the driver all of `chains` at once, as done.
    pub(crate) fn complete(
        &mut self,
        memory: &GuestMemoryMmap,
        chains: impl IntoIterator<Item = (Chain, u32)>,
    ) -> Result<(), RingError> {
        // What was read of it may be no data of the driver, and what was written to it has gone.
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
        self.show_used(memory, heads.len() as u16)?;
        if let Some(record) = &self.inflight {
            record.used(&heads, self.queue.next_used())?;
        }
        self.heads = heads;
        Ok(())
    }

    /// Keeps the memory of a chain for another.
    fn keep(&mut self, segments: Vec<Segment>) {
        if self.spare.len() < SPARE_CHAINS {
            self.spare.push(segments);
        }
    }
}
