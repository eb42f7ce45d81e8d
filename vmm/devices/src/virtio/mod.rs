//! Virtio (1.2): what a device is to its transport, and the one transport, PCI.
//!
//! The transport knows registers, queues' addresses and interrupts; a [`VirtioDevice`] knows features, configuration and
//! what to do with queues once the driver is ready. Requests pass through neither.

mod interrupts;
mod layout;
mod pci;
mod queue;
mod registers;

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use crate::hypervisor::MsiVector;

pub use pci::VirtioPci;

/// `VIRTIO_F_VERSION_1`: the device is modern. This transport is for no others.
pub const F_VERSION_1: u64 = 1 << virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;

/// A virtqueue the driver has set up. Addresses are guest physical; the whole of each part lies within one region of guest RAM.
#[derive(Clone)]
pub struct ActiveQueue {
    /// Its number.
    pub index: u16,
    /// Its length, a power of two.
    pub size: u16,
    /// Where the descriptor table is.
    pub descriptors: u64,
    /// Where the available ring is.
    pub available: u64,
    /// Where the used ring is.
    pub used: u64,
    /// Signalled by the guest when it made buffers available. The same one for the device's whole life.
    pub kick: Arc<EventFd>,
    /// What to signal when buffers were used: its eventfd.
    pub call: Arc<dyn MsiVector>,
}

/// What a device may tell its transport, at any time and from any thread. None of these waits for anything.
pub trait DeviceEvents: Send + Sync {
    /// The configuration space is now a different one.
    fn config_changed(&self);

    /// The device cannot go on: the driver has to reset it.
    fn needs_reset(&self);
}

/// A virtio device, as its transport sees it. The transport calls [`Self::activate`], [`Self::set_call`] and [`Self::reset`] never
/// from two threads at once, and never the first twice without a complete reset between; the other calls come whenever. A vCPU is
/// behind each call, so none of them waits for anything.
pub trait VirtioDevice: Send + Sync {
    /// Its type (virtio 1.2 §5): 1 is a network card, 2 a block device.
    fn device_type(&self) -> u16;

    /// The features it offers.
    fn features(&self) -> u64;

    /// The longest each of its queues may be: powers of two. Their number is the number of queues.
    fn queue_max_sizes(&self) -> &[u16];

    /// Reads its configuration space; what does not exist reads as zeros.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes its configuration space; what does not exist is passed over.
    fn write_config(&self, offset: u64, data: &[u8]);

    /// Where to report events from now on.
    fn attach(&self, events: Arc<dyn DeviceEvents>);

    /// The driver is ready: `features` were agreed on, `queues` are set up. The device works on the queues as soon as it can.
    fn activate(&self, features: u64, queues: Vec<ActiveQueue>);

    /// Queue `index`, active, shall signal `call` from now on.
    fn set_call(&self, index: u16, call: Arc<dyn MsiVector>);

    /// The driver has notified queue `index` by a write that came to the monitor.
    fn notify(&self, index: u16);

    /// The driver takes its queues back. It may come when there are none.
    fn reset(&self);

    /// Whether the last reset is complete: the device no longer touches the queues.
    fn is_stopped(&self) -> bool;
}
