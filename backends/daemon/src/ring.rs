//! One ring of the device: its set-up by the frontend, and its state.

use std::sync::Arc;

use virtio_queue::{Queue as SplitQueue, QueueT};
use vm_memory::GuestMemoryMmap;

use crate::error::RingError;
use crate::inflight::InflightRing;
use crate::memory::Memory;
use crate::queue::Queue;
use crate::running::{Running, Turn};
use crate::vring_eventfd::VringEventFd;
use crate::warn;

/// The longest ring: as QEMU has it.
pub const MAX_RING_SIZE: u16 = 1024;

/// The three parts of a ring, as addresses in the frontend's address space.
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
    /// Broken by the driver or the frontend, until the frontend stops it. Has the available index for GET_VRING_BASE.
    Broken(u16),
}

#[derive(Debug)]
pub(crate) struct Ring {
    pub(crate) index: u16,
    pub(crate) size: u16,
    pub(crate) base: u16,
    pub(crate) addresses: Option<RingAddresses>,
    pub(crate) enabled: bool,
    kick: Option<VringEventFd>,
    call: Option<VringEventFd>,
    err: Option<VringEventFd>,
    state: State,
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

    /// Sets the kick eventfd, and returns the old one, which may still be watched.
    pub(crate) fn set_kick(&mut self, event: Option<VringEventFd>) -> Option<VringEventFd> {
        std::mem::replace(&mut self.kick, event)
    }

    /// Sets the call eventfd, and signals it at once: there may have been completions before it was set.
    pub(crate) fn set_call(&mut self, event: Option<VringEventFd>) {
        self.call = event;
        self.notify();
    }

    /// Notifies the driver. An eventfd that blocks is not used again.
    fn notify(&mut self) {
        if self.call.as_ref().is_some_and(|call| !call.signal()) {
            self.call = None;
            warn(&format!("the call eventfd of ring {} blocks", self.index));
        }
    }

    pub(crate) fn set_err(&mut self, event: Option<VringEventFd>) {
        self.err = event;
    }

    pub(crate) fn is_running(&self) -> bool {
        matches!(self.state, State::Running(_)) && self.enabled
    }

    pub(crate) fn is_stopped(&self) -> bool {
        matches!(self.state, State::Stopped)
    }

    /// Whether the ring is stopped and has all that it needs to run.
    pub(crate) fn can_start(&self) -> bool {
        self.is_stopped()
            && self.enabled
            && self.size != 0
            && self.kick.is_some()
            && self.addresses.is_some()
    }

    /// Starts the ring. It goes on where the used ring and the in-flight record say, or where the frontend's base says
    /// without a record.
    pub(crate) fn start(
        &mut self,
        memory: &Memory,
        event_idx: bool,
        inflight: Option<InflightRing>,
    ) -> Result<(), RingError> {
        let mut queue = self.queue(memory)?;
        queue.set_event_idx(event_idx);
        let running = Running::start(queue, memory.guest(), self.base, inflight)?;
        self.state = State::Running(Box::new(running));
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

    /// Stops the ring, and returns the index in the available ring from which to go on. (GET_VRING_BASE)
    pub(crate) fn stop(&mut self) -> u16 {
        if let State::Running(running) = &self.state {
            self.base = running.next_available();
        } else if let State::Broken(base) = self.state {
            self.base = base;
        }
        self.state = State::Stopped;
        self.kick = None;
        self.call = None;
        self.base
    }

    /// Stops serving the ring, and signals the err eventfd if there is one.
    pub(crate) fn break_down(&mut self) {
        let base = match &self.state {
            State::Running(running) => {
                running.forget();
                running.next_available()
            }
            State::Broken(base) => *base,
            State::Stopped => self.base,
        };
        self.state = State::Broken(base);
        if self.err.as_ref().is_some_and(|err| !err.signal()) {
            self.err = None;
        }
    }

    /// Has `serve` take and complete requests, and notifies the driver. Returns whether there is more to do.
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
        // The driver is notified of what was completed even if the rest broke the ring.
        let notify = running.take_notification(memory);
        let ended = served.and_then(|()| running.end(memory));
        if let Ok(true) = notify {
            self.notify();
        }
        notify?;
        ended
    }
}
