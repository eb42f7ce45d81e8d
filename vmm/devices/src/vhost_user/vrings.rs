//! Starts and stops a device's vrings at a backend.

use vhost::vhost_user::message::{VhostUserVringAddr, VhostUserVringAddrFlags};
use vm_memory::GuestMemoryMmap;

use super::backend::Backend;
use super::connection::{DRAIN_TIMEOUT, STEP_TIMEOUT};
use super::driver_setup::DriverSetup;
use super::error::Result;
use super::inflight::Inflight;
use super::memory;
use super::signal::signal;
use crate::virtio::ActiveQueue;

/// Where a backend begins in the vrings.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// At index 0: the driver has just set them up.
    Fresh,
    /// At the used ring's index, where they were stopped or the former backend died.
    Resumed,
}

/// Starts the vrings.
pub(super) fn start(
    backend: &Backend,
    memory: &GuestMemoryMmap,
    setup: &DriverSetup,
    inflight: &mut Inflight,
    start: Start,
) -> Result<()> {
    let connection = &backend.connection;
    connection.set_deadline(STEP_TIMEOUT);
    let accepted = setup.features & backend.features;
    connection.set_features(accepted | backend.own_features())?;
    inflight.share(backend, setup)?;
    memory::share(connection, memory)?;
    for queue in &setup.queues {
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
        connection.set_vring_call(queue.index, inflight.call(queue))?;
        connection.set_vring_kick(queue.index, &queue.kick)?;
    }
    if backend.enables_rings() {
        for queue in &setup.queues {
            connection.set_vring_enable(queue.index, true)?;
        }
    }
    connection.sync()?;
    for queue in &setup.queues {
        signal_again(memory, queue, start);
    }
    Ok(())
}

/// Repeats kicks and calls that may be lost. The driver does not wait for the start, many backends discard kicks that
/// come between SET_VRING_KICK and SET_VRING_ENABLE, and a backend that died may have taken kicks and owed calls. One
/// too many is harmless, since both sides look at the rings when they are woken.
fn signal_again(memory: &GuestMemoryMmap, queue: &ActiveQueue, start: Start) {
    if start == Start::Resumed {
        signal(&queue.kick);
        queue.call.signal();
    } else if memory::available_index(memory, queue) != 0 {
        signal(&queue.kick);
    }
}

/// Stops the vrings. When this returns, the backend has completed what it had taken from them and accesses them no
/// more.
pub(super) fn stop(backend: &Backend, setup: &DriverSetup) -> Result<()> {
    backend.connection.set_deadline(DRAIN_TIMEOUT);
    for queue in &setup.queues {
        if backend.enables_rings() {
            backend.connection.set_vring_enable(queue.index, false)?;
        }
        backend.connection.vring_base(queue.index)?;
    }
    Ok(())
}
