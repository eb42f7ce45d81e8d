//! A part of the device with its rings: all that happens to them while they run.

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

/// What rings start with.
#[derive(Clone, Copy)]
pub(crate) struct Start<'a> {
    pub(crate) memory: &'a Memory,
    pub(crate) inflight: Option<&'a InflightArea>,
    /// Whether the driver knows virtio 1.
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

pub(crate) struct Worker<'d, D: Device> {
    pub(crate) part: &'d mut D,
    events: Vec<D::Event>,
    rings: Rings,
    memory: Arc<GuestMemoryMmap>,
    again: Again,
    poll: Arc<Poll>,
}

impl<'d, D: Device> Worker<'d, D> {
    /// Part `number` of `parts`, of a device with `rings`; what happens to it is told by `poll`.
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

    /// Does what is to be done about `token`.
    ///
    /// # Errors
    /// The device's, when it cannot go on.
    pub(crate) fn happened(&mut self, token: Token) -> io::Result<()> {
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

    pub(crate) fn has_more(&self) -> bool {
        !self.again.is_empty()
    }

    /// Gives every ring that asked for it another turn.
    pub(crate) fn next_turns(&mut self) {
        for index in self.again.take() {
            self.kicked(index);
        }
    }

    /// The part, and its rings that it may be given.
    fn split(&mut self) -> (&mut D, Queues<'_>) {
        let queues = Queues {
            rings: &mut self.rings,
            memory: &self.memory,
            again: &mut self.again,
        };
        (&mut *self.part, queues)
    }

    /// The driver says that there are requests in ring `index`.
    fn kicked(&mut self, index: u16) {
        let (part, mut queues) = self.split();
        if queues.is_running(index) && !queues.run(index, |queue| part.process(queue)) {
            part.queue_running(index, false);
        }
    }

    /// The part's own event happened.
    fn device_event(&mut self, event: D::Event) -> io::Result<()> {
        self.changing(|worker| {
            let (part, mut queues) = worker.split();
            part.handle(event, &mut queues)
        })
    }

    /// Does `change`, and tells the part which rings it has started or stopped.
    fn changing<R>(&mut self, change: impl FnOnce(&mut Self) -> R) -> R {
        let running =
            |worker: &Self| -> Vec<bool> { worker.rings.iter().map(Ring::is_running).collect() };
        let before = running(self);
        let result = change(self);
        for (ring, before) in self.rings.iter().zip(before) {
            if ring.is_running() != before {
                self.part.queue_running(ring.index, !before);
            }
        }
        result
    }

    /// Has the part complete what it has taken from ring `index`, which is about to stop.
    pub(crate) fn drain(&mut self, index: u16) {
        let (part, mut queues) = self.split();
        if queues.is_running(index) && !queues.run(index, |queue| part.drain(queue)) {
            part.queue_running(index, false);
        }
    }

    /// Has requests taken from now on use `memory`, and those taken so far done with what was there before.
    pub(crate) fn set_memory(&mut self, memory: &Arc<GuestMemoryMmap>) {
        for index in self.rings.indexes() {
            self.drain(index);
        }
        self.memory = Arc::clone(memory);
    }

    /// The same for memory that has become more.
    pub(crate) fn extend_memory(&mut self, memory: &Arc<GuestMemoryMmap>) {
        self.memory = Arc::clone(memory);
    }

    pub(crate) fn ring(&mut self, index: u16) -> Option<&mut Ring> {
        self.rings.get_mut(index)
    }

    /// Enables all rings, as they are without protocol features.
    pub(crate) fn enable_all(&mut self) {
        self.changing(|worker| {
            for ring in worker.rings.iter_mut() {
                ring.enabled = true;
            }
        });
    }

    pub(crate) fn set_enabled(&mut self, index: u16, enabled: bool) {
        if !enabled {
            self.drain(index);
        }
        self.changing(|worker| {
            if let Some(ring) = worker.rings.get_mut(index) {
                ring.enabled = enabled;
            }
            // One that had started before only goes on.
            if enabled {
                worker.again.add(index);
            }
        });
    }

    /// Starts the rings that have all they need, and looks at them once: the kick may have been given to a process that died.
    pub(crate) fn start_rings(&mut self, start: &Start<'_>) {
        self.changing(|worker| {
            for ring in worker.rings.iter_mut() {
                if !ring.can_start() {
                    continue;
                }
                match start.start(ring) {
                    Ok(()) => worker.again.add(ring.index),
                    Err(error) => out_of_service(ring, &error),
                }
            }
        });
    }

    /// Has ring `index` kicked by `event`.
    pub(crate) fn set_kick(&mut self, index: u16, event: Option<VringEventFd>) -> io::Result<()> {
        let Some(ring) = self.rings.get_mut(index) else {
            return Ok(());
        };
        if let Some(old) = ring.set_kick(None) {
            self.poll.remove(&old);
        }
        if let Some(event) = &event {
            // Without a descriptor the frontend wants the ring polled; nobody kicks it then, and nobody serves it.
            self.poll.add(event, Token::Kick(index))?;
        }
        ring.set_kick(event);
        Ok(())
    }

    /// Stops ring `index`, with nothing of it under way, and gives the index in the available ring from which to go on.
    pub(crate) fn stop(&mut self, index: u16) -> u16 {
        self.drain(index);
        self.changing(|worker| {
            let Some(ring) = worker.rings.get_mut(index) else {
                return 0;
            };
            if let Some(kick) = ring.set_kick(None) {
                worker.poll.remove(&kick);
            }
            ring.stop()
        })
    }

    /// Stops all rings and forgets what was said about them.
    pub(crate) fn stop_all(&mut self) {
        for index in self.rings.indexes() {
            self.stop(index);
        }
        for ring in self.rings.iter_mut() {
            *ring = Ring::new(ring.index);
        }
        self.again.take();
    }

    /// What happens to the part is of no interest any more.
    pub(crate) fn close(&mut self) {
        self.stop_all();
        self.memory = Arc::default();
        for (fd, _) in self.part.events() {
            self.poll.remove(fd);
        }
    }
}
