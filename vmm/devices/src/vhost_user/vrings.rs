//! Handing a device's queues to a backend and taking them back.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use vhost::vhost_user::message::{
    VhostUserInflight, VhostUserProtocolFeatures, VhostUserVringAddr, VhostUserVringAddrFlags,
};
use vm_memory::GuestMemoryMmap;

use super::connection::{DRAIN, STEP};
use super::error::Result;
use super::handshake::Link;
use super::memory;
use super::unanswered::Unanswered;
use super::worker::signal;
use crate::virtio::ActiveQueue;

/// What the driver has agreed on and set up.
#[derive(Clone)]
pub(super) struct Active {
    pub(super) features: u64,
    pub(super) queues: Vec<ActiveQueue>,
}

/// The notes on requests in flight, which outlive the backend that wrote them.
pub(super) struct Inflight {
    pub(super) area: VhostUserInflight,
    pub(super) fd: OwnedFd,
}

/// What is kept of the requests that a backend has, for the next one.
#[derive(Default)]
pub(super) struct Notes {
    /// By the backend.
    pub(super) inflight: Option<Inflight>,
    /// By the monitor, for a backend that does not.
    pub(super) unanswered: Option<Unanswered>,
}

impl Notes {
    /// What the backend signals when it has answered.
    fn call(&self, queue: &ActiveQueue) -> RawFd {
        let relay = |unanswered: &Unanswered| unanswered.relay(queue.index);
        let relay = self.unanswered.as_ref().and_then(relay);
        relay.unwrap_or_else(|| queue.call.eventfd().as_raw_fd())
    }
}

/// Whether the backend begins with empty queues, or goes on where another one stopped.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    Fresh,
    Resumed,
}

/// Has the backend work on the queues.
pub(super) fn start(
    link: &Link,
    memory: &GuestMemoryMmap,
    active: &Active,
    notes: &mut Notes,
    start: Start,
) -> Result<()> {
    let connection = &link.connection;
    connection.begin(STEP);
    let accepted = active.features & link.backend_features;
    connection.set_features(accepted | link.own_features())?;
    share_inflight(link, active, &mut notes.inflight)?;
    memory::share(connection, memory)?;
    for queue in &active.queues {
        let base = match start {
            Start::Fresh => 0,
            Start::Resumed => memory::used_index(memory, queue),
        };
        connection.set_vring_num(queue.index, queue.size)?;
        connection.set_vring_addr(&VhostUserVringAddr::new(
            queue.index.into(),
            VhostUserVringAddrFlags::empty(),
            memory::user_address(queue.descriptors),
            memory::user_address(queue.used),
            memory::user_address(queue.available),
            0,
        ))?;
        connection.set_vring_base(queue.index, base)?;
        connection.set_vring_call(queue.index, notes.call(queue))?;
        connection.set_vring_kick(queue.index, &queue.kick)?;
    }
    if link.enables_rings() {
        for queue in &active.queues {
            connection.set_vring_enable(queue.index, true)?;
        }
    }
    connection.settle()?;
    for queue in &active.queues {
        wake(memory, queue, start);
    }
    Ok(())
}

/// The driver runs on meanwhile, and a kick may have been swallowed: by the backend that died, or by this one, as many throw away what
/// comes between SET_VRING_KICK and SET_VRING_ENABLE. A call may have gone with the backend that died. Each is made once more: both
/// sides look at the rings when woken, so one too many does no harm.
fn wake(memory: &GuestMemoryMmap, queue: &ActiveQueue, start: Start) {
    if start == Start::Resumed {
        signal(&queue.kick);
        queue.call.signal();
    } else if memory::available_index(memory, queue) != 0 {
        signal(&queue.kick);
    }
}

/// Lets the backend have the notes of the one before, or make a new place for them.
fn share_inflight(link: &Link, active: &Active, inflight: &mut Option<Inflight>) -> Result<()> {
    if !link.has(VhostUserProtocolFeatures::INFLIGHT_SHMFD) || active.queues.is_empty() {
        return Ok(());
    }
    if inflight.is_none() {
        let count = active
            .queues
            .iter()
            .map(|queue| queue.index.saturating_add(1));
        let size = active.queues.iter().map(|queue| queue.size);
        let (count, size) = (count.max().unwrap_or(1), size.max().unwrap_or(1));
        let (area, fd) = link.connection.inflight_fd(count, size)?;
        *inflight = Some(Inflight { area, fd });
    }
    match inflight {
        Some(notes) => link.connection.set_inflight_fd(&notes.area, &notes.fd),
        None => Ok(()),
    }
}

/// Takes the queues back: afterwards the backend touches none of them.
pub(super) fn stop(link: &Link, active: &Active) -> Result<()> {
    link.connection.begin(DRAIN);
    for queue in &active.queues {
        if link.enables_rings() {
            link.connection.set_vring_enable(queue.index, false)?;
        }
        link.connection.vring_base(queue.index)?;
    }
    Ok(())
}
