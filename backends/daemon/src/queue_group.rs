//! A queue group: one part of the device and the rings that it serves.

use std::io;
use std::sync::Arc;

use vm_memory::GuestMemoryMmap;

use crate::device::{Device, Queues, out_of_service};
use crate::error::RingError;
use crate::inflight::InflightArea;
use crate::memory::Memory;
use crate::poll::{Again, Poll, Token};
use crate::ring::Ring;
use crate::rings::Rings;
use crate::vring_eventfd::VringEventFd;

/// What a ring needs from the session to start.
#[derive(Clone, Copy)]
pub(crate) struct Start<'a> {
    pub(crate) memory: &'a Memory,
    pub(crate) inflight: Option<&'a InflightArea>,
    /// Whether the driver accepted VIRTIO_F_VERSION_1.
    pub(crate) modern: bool,
    pub(crate) event_idx: bool,
}

impl Start<'_> {
    fn start(&self, ring: &mut Ring) -> Result<(), RingError> {
        if !self.modern {
            return Err(RingError::Legacy);
        }
        let record = self.inflight.map(|area| area.ring(ring.index, ring.size));
        ring.start(self.memory, self.event_idx, record.transpose()?)
    }
}

/// One part of the device and its rings.
pub(crate) struct QueueGroup<'d, D: Device> {
    pub(crate) part: &'d mut D,
    events: Vec<D::Event>,
    rings: Rings,
    memory: Arc<GuestMemoryMmap>,
    again: Again,
    poll: Arc<Poll>,
}

impl<'d, D: Device> QueueGroup<'d, D> {
    /// Part `number` of `parts`, of a device with `rings`. Adds the part's events to `poll`, and later the rings'
    /// kicks.
    pub(crate) fn new(
        part: &'d mut D,
        (number, parts): (u16, u16),
        rings: u16,
        poll: Arc<Poll>,
    ) -> io::Result<Self> {
        let mut events = Vec::new();
        for (number, (fd, event)) in (0u32..).zip(part.events()) {
            poll.add(fd, Token::Device(number))?;
            events.push(event);
        }
        Ok(Self {
            part,
            events,
            rings: Rings::new(number, parts, rings),
            memory: Arc::default(),
            again: Again::default(),
            poll,
        })
    }

    /// Handles `token`, if it is a kick or an event of the part.
    ///
    /// # Errors
    /// The device's, when it cannot go on.
    pub(crate) fn handle(&mut self, token: Token) -> io::Result<()> {
        match token {
            Token::Kick(ring) => self.kicked(ring),
            Token::Device(number) => {
                if let Some(&event) = self.events.get(number as usize) {
                    return self.device_event(event);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether a ring asked for another turn.
    pub(crate) fn has_more(&self) -> bool {
        !self.again.is_empty()
    }

    /// Gives every ring that asked for it another turn.
    pub(crate) fn next_turns(&mut self) {
        for index in self.again.take() {
            self.kicked(index);
        }
    }

    /// The part, and the rings to pass to it.
    fn split(&mut self) -> (&mut D, Queues<'_>) {
        let queues = Queues {
            rings: &mut self.rings,
            memory: &self.memory,
            again: &mut self.again,
        };
        (&mut *self.part, queues)
    }

    /// Has the part process ring `index`, which the driver has kicked.
    fn kicked(&mut self, index: u16) {
        let (part, mut queues) = self.split();
        if queues.is_running(index) && !queues.run(index, |queue| part.process(queue)) {
            part.queue_running(index, false);
        }
    }

    /// Has the part handle an event of its own.
    fn device_event(&mut self, event: D::Event) -> io::Result<()> {
        self.changing(|group| {
            let (part, mut queues) = group.split();
            part.handle(event, &mut queues)
        })
    }

    /// Makes `change`, then notifies the part of each ring that it started or stopped.
    fn changing<R>(&mut self, change: impl FnOnce(&mut Self) -> R) -> R {
        let running =
            |group: &Self| -> Vec<bool> { group.rings.iter().map(Ring::is_running).collect() };
        let before = running(self);
        let result = change(self);
        for (ring, before) in self.rings.iter().zip(before) {
            if ring.is_running() != before {
                self.part.queue_running(ring.index, !before);
            }
        }
        result
    }

    /// Has the part complete the requests that it has taken from ring `index`, which is about to stop.
    pub(crate) fn drain(&mut self, index: u16) {
        let (part, mut queues) = self.split();
        if queues.is_running(index) && !queues.run(index, |queue| part.drain(queue)) {
            part.queue_running(index, false);
        }
    }

    /// Completes the requests taken so far with the memory they were taken with; later ones use `memory`.
    pub(crate) fn set_memory(&mut self, memory: &Arc<GuestMemoryMmap>) {
        for index in self.rings.indexes() {
            self.drain(index);
        }
        self.memory = Arc::clone(memory);
    }

    /// Has later requests use `memory`, which has all that the old memory had; requests in flight need not be
    /// completed.
    pub(crate) fn extend_memory(&mut self, memory: &Arc<GuestMemoryMmap>) {
        self.memory = Arc::clone(memory);
    }

    pub(crate) fn ring(&mut self, index: u16) -> Option<&mut Ring> {
        self.rings.get_mut(index)
    }

    /// Enables all rings, as they are without protocol features.
    pub(crate) fn enable_all(&mut self) {
        self.changing(|group| {
            for ring in group.rings.iter_mut() {
                ring.enabled = true;
            }
        });
    }

    pub(crate) fn set_enabled(&mut self, index: u16, enabled: bool) {
        if !enabled {
            self.drain(index);
        }
        self.changing(|group| {
            if let Some(ring) = group.rings.get_mut(index) {
                ring.enabled = enabled;
            }
            // A ring that had started before needs no kick to go on.
            if enabled {
                group.again.add(index);
            }
        });
    }

    /// Starts the rings that have all they need, and processes them once: a process that died may have consumed the
    /// kick.
    pub(crate) fn start_rings(&mut self, start: &Start<'_>) {
        self.changing(|group| {
            for ring in group.rings.iter_mut() {
                if !ring.can_start() {
                    continue;
                }
                match start.start(ring) {
                    Ok(()) => group.again.add(ring.index),
                    Err(error) => out_of_service(ring, &error),
                }
            }
        });
    }

    /// Sets the eventfd by which the driver kicks ring `index`.
    pub(crate) fn set_kick(&mut self, index: u16, event: Option<VringEventFd>) -> io::Result<()> {
        let Some(ring) = self.rings.get_mut(index) else {
            return Ok(());
        };
        if let Some(old) = ring.set_kick(None) {
            self.poll.remove(&old);
        }
        if let Some(event) = &event {
            // Without an eventfd the frontend wants the ring polled, which this backend does not do.
            self.poll.add(event, Token::Kick(index))?;
        }
        ring.set_kick(event);
        Ok(())
    }

    /// Completes what is in flight on ring `index`, stops it, and returns the index in the available ring from which to
    /// go on.
    pub(crate) fn stop(&mut self, index: u16) -> u16 {
        self.drain(index);
        self.changing(|group| {
            let Some(ring) = group.rings.get_mut(index) else {
                return 0;
            };
            if let Some(kick) = ring.set_kick(None) {
                group.poll.remove(&kick);
            }
            ring.stop()
        })
    }

    /// Stops all rings and resets them to their first state.
    pub(crate) fn stop_all(&mut self) {
        for index in self.rings.indexes() {
            self.stop(index);
        }
        for ring in self.rings.iter_mut() {
            *ring = Ring::new(ring.index);
        }
        self.again.take();
    }

    /// Stops all rings and stops watching the part's events.
    pub(crate) fn close(&mut self) {
        self.stop_all();
        self.memory = Arc::default();
        for (fd, _) in self.part.events() {
            self.poll.remove(fd);
        }
    }
}
