//! One ring of the device: what the frontend has said about it, and whether it runs.

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

    /// Takes the descriptor that the driver kicks by, and gives the old one, which may still be watched.
    pub(crate) fn set_kick(&mut self, event: Option<VringEventFd>) -> Option<VringEventFd> {
        std::mem::replace(&mut self.kick, event)
    }

    /// Takes the descriptor to notify the driver by, and uses it at once: completions may have come before it.
    pub(crate) fn set_call(&mut self, event: Option<VringEventFd>) {
        self.call = event;
        self.notify();
    }

    /// Notifies the driver. A descriptor that makes this wait is not used again.
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

    /// Stops the ring, and gives the index in the available ring from which to go on. (GET_VRING_BASE)
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

    /// Stops serving the ring and tells the frontend, if it wants to know.
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
        let ended = served.and_then(|()| running.end(memory));
        if let Ok(true) = told {
            self.notify();
        }
        told?;
        ended
    }
}
