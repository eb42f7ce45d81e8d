//! The virtio network device: pairs of rings, each on a queue of the TAP device.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Result, bail};
use bulkhead_daemon::{Device, Queue, Queues, RingError};
use bulkhead_mac::MacAddr;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tap::{Offloads, Options, Tap, VNET_HDR_LEN};
use virtio_bindings::virtio_net as net;

use crate::control::control;
use crate::features::{self, bit};
use crate::receive::Receiver;
use crate::source::Attachment;
use crate::transmit::{gone, is_removed, transmit};

/// A virtio network device.
#[derive(Debug)]
pub(crate) struct Net {
    pairs: Vec<Pair>,
    mac: Option<MacAddr>,
    mtu: Option<u16>,
    supported: Offloads,
    /// The features that the driver has accepted.
    accepted: u64,
    /// Runs while a frame waits for buffers.
    timer: OwnedFd,
    /// How many pairs the driver uses, if it says so by the control queue.
    in_use: u16,
}

/// A receive ring, a transmit ring, and their queue of the TAP device.
#[derive(Debug)]
struct Pair {
    tap: Tap,
    receiver: Receiver,
    /// Whether the receive ring runs.
    running: bool,
    /// Whether the kernel steers frames to this queue.
    attached: bool,
}

/// The events of the device beside kicks.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Event {
    /// The TAP queue of a pair has frames, or is gone.
    Tap(usize),
    /// Frames have waited long enough for buffers and are dropped.
    Patience,
}

/// How long a frame waits for enough buffers: longer than a driver that works takes to offer them.
const PATIENCE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// The purpose of a ring. (virtio 1.2, 5.1.2)
enum Role {
    Receive(usize),
    Transmit(usize),
    Control,
}

impl Net {
    pub(crate) fn new(attachment: Attachment) -> Result<Self> {
        let Attachment { taps, mac, mtu } = attachment;
        let mut supported = Offloads::empty();
        for tap in &taps {
            if !tap.options().contains(Options::VNET_HDR) {
                bail!("TAP device {} was opened without IFF_VNET_HDR", tap.name());
            }
            tap.set_vnet_hdr_len(VNET_HDR_LEN)?;
            if cfg!(target_endian = "big") {
                tap.set_vnet_little_endian()?;
            }
            supported = features::supported(tap);
        }
        let pairs = taps.into_iter().map(|tap| Pair {
            tap,
            receiver: Receiver::new(),
            running: false,
            attached: true,
        });
        let mut device = Net {
            pairs: pairs.collect(),
            mac,
            mtu,
            supported,
            accepted: 0,
            timer: timerfd_create(
                TimerfdClockId::Monotonic,
                TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
            )?,
            in_use: 1,
        };
        device.steer()?;
        Ok(device)
    }

    fn role(&self, ring: u16) -> Role {
        let has = |feature| self.accepted & bit(feature) != 0;
        let pairs = if has(net::VIRTIO_NET_F_MQ) {
            self.pairs.len()
        } else {
            1
        };
        let ring = usize::from(ring);
        match (ring / 2, ring % 2) {
            (pair, 0) if pair == pairs && has(net::VIRTIO_NET_F_CTRL_VQ) => Role::Control,
            (pair, 0) => Role::Receive(pair),
            (pair, _) => Role::Transmit(pair),
        }
    }

    /// Has the kernel steer frames to the queues that the guest uses, and always to the first.
    fn steer(&mut self) -> Result<(), tap::Error> {
        let controlled = self.accepted & bit(net::VIRTIO_NET_F_CTRL_VQ) != 0;
        let limit = if controlled {
            usize::from(self.in_use)
        } else {
            self.pairs.len()
        };
        for (number, pair) in self.pairs.iter_mut().enumerate().skip(1) {
            let attached = pair.running && number < limit;
            if attached != pair.attached {
                pair.tap.set_queue_enabled(attached)?;
                pair.attached = attached;
            }
        }
        Ok(())
    }

    /// The same for callers that cannot return the error: it becomes a warning.
    fn steer_or_warn(&mut self) -> bool {
        let steered = self.steer();
        if let Err(error) = &steered {
            bulkhead_process::warn(&error.to_string());
        }
        steered.is_ok()
    }

    fn set_offloads(&self, offloads: Offloads) {
        // Offloads belong to the interface, so setting them by one queue is enough.
        if let Some(Err(error)) = self
            .pairs
            .first()
            .map(|pair| pair.tap.set_offloads(offloads))
        {
            bulkhead_process::warn(&error.to_string());
        }
    }

    /// Receives on a pair because of an event, not of a kick.
    fn receive(&mut self, number: usize, queues: &mut Queues<'_>) -> io::Result<()> {
        let mergeable = self.mergeable();
        let Some(pair) = self.pairs.get_mut(number) else {
            return Ok(());
        };
        let Pair {
            tap,
            receiver,
            attached,
            ..
        } = pair;
        let Ok(ring) = u16::try_from(number * 2) else {
            return Ok(());
        };
        // If the ring does not run, `process` is called when it starts.
        let (mut removed, mut read) = (false, false);
        queues.run(ring, |queue| {
            let received = receiver.receive(tap, queue, mergeable);
            removed = received.as_ref().is_err_and(|error| *error == gone(tap));
            read = receiver.has_read();
            received
        });
        // Without buffers the TAP device was not read, so the read did not fail even if the device is gone.
        if removed || (!read && *attached && is_removed(tap)) {
            return Err(io::Error::other(gone(tap)));
        }
        self.watch_the_clock();
        Ok(())
    }

    fn mergeable(&self) -> bool {
        self.accepted & bit(net::VIRTIO_NET_F_MRG_RXBUF) != 0
    }

    /// Sets the timer if a frame waits.
    fn watch_the_clock(&self) {
        if !self.pairs.iter().any(|pair| pair.receiver.is_waiting()) {
            return;
        }
        let once = Itimerspec {
            it_interval: Timespec::default(),
            it_value: PATIENCE,
        };
        // It fails only for invalid values.
        let _ = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once);
    }

    fn set_in_use(&mut self, pairs: u16) -> bool {
        if !(1..=self.pairs.len()).contains(&usize::from(pairs)) {
            return false;
        }
        self.in_use = pairs;
        self.steer_or_warn()
    }
}

impl Device for Net {
    type Event = Event;

    fn features(&self) -> u64 {
        features::offered(
            self.supported,
            self.mac.is_some(),
            self.mtu.is_some(),
            self.pairs.len(),
        )
    }

    fn queues(&self) -> u16 {
        let pairs = u16::try_from(self.pairs.len()).unwrap_or(u16::MAX / 2);
        // Several pairs need a control queue, which comes after them.
        pairs.saturating_mul(2).saturating_add(u16::from(pairs > 1))
    }

    fn config(&self) -> Vec<u8> {
        let pairs = u16::try_from(self.pairs.len()).unwrap_or(u16::MAX);
        features::config(self.mac, pairs, self.mtu)
    }

    fn negotiated(&mut self, accepted: u64) {
        self.accepted = accepted;
        self.set_offloads(features::offloads(accepted));
        self.steer_or_warn();
    }

    fn queue_running(&mut self, index: u16, running: bool) {
        if let Role::Receive(pair) = self.role(index)
            && let Some(pair) = self.pairs.get_mut(pair)
        {
            pair.running = running;
            if !running {
                pair.receiver.give_up();
            }
            self.steer_or_warn();
        }
    }

    fn process(&mut self, queue: &mut Queue<'_>) -> Result<(), RingError> {
        let mergeable = self.mergeable();
        match self.role(queue.index()) {
            Role::Control => control(queue, |pairs| self.set_in_use(pairs)),
            Role::Receive(pair) => match self.pairs.get_mut(pair) {
                Some(Pair { tap, receiver, .. }) => {
                    receiver.receive(tap, queue, mergeable)?;
                    self.watch_the_clock();
                    Ok(())
                }
                None => Err(no_such_pair(pair)),
            },
            Role::Transmit(pair) => match self.pairs.get(pair) {
                Some(pair) => transmit(&pair.tap, queue),
                None => Err(no_such_pair(pair)),
            },
        }
    }

    fn events(&self) -> Vec<(BorrowedFd<'_>, Event)> {
        let taps = self.pairs.iter().enumerate();
        let taps = taps.map(|(number, pair)| (pair.tap.as_fd(), Event::Tap(number)));
        taps.chain([(self.timer.as_fd(), Event::Patience)])
            .collect()
    }

    fn handle(&mut self, event: Event, queues: &mut Queues<'_>) -> io::Result<()> {
        match event {
            Event::Tap(number) => match self.pairs.get(number) {
                Some(pair) if pair.receiver.is_waiting() => match is_removed(&pair.tap) {
                    true => Err(io::Error::other(gone(&pair.tap))),
                    false => Ok(()),
                },
                _ => self.receive(number, queues),
            },
            Event::Patience => (0..self.pairs.len()).try_for_each(|number| {
                match self.pairs.get_mut(number) {
                    Some(pair) if pair.receiver.is_waiting() => pair.receiver.give_up(),
                    _ => return Ok(()),
                }
                self.receive(number, queues)
            }),
        }
    }

    /// The first TAP queue, which is always attached.
    fn watched_without_frontend(&self) -> Option<BorrowedFd<'_>> {
        self.pairs.first().map(|pair| pair.tap.as_fd())
    }

    fn look(&self) -> io::Result<()> {
        match self.pairs.first() {
            Some(pair) if is_removed(&pair.tap) => Err(io::Error::other(gone(&pair.tap))),
            _ => Ok(()),
        }
    }

    fn disconnected(&mut self) -> io::Result<()> {
        self.accepted = 0;
        self.in_use = 1;
        self.set_offloads(Offloads::empty());
        self.steer().map_err(io::Error::other)
    }
}

fn no_such_pair(pair: usize) -> RingError {
    RingError::Device(format!("there is no pair of queues {pair}"))
}
