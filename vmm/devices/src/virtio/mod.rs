//! Virtio (1.2): a device as its transport sees it, and the one transport, PCI.
//!
//! The transport has the registers, the queues' addresses and the interrupts. A [`VirtioDevice`] has the features, the
//! configuration space, and works on the queues once the driver is ready. Requests pass through neither.

mod interrupts;
mod layout;
mod pci;
mod queue;
mod registers;

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use crate::hypervisor::MsiVector;

pub use pci::VirtioPci;

/// `VIRTIO_F_VERSION_1`: the device is modern. This transport supports no others.
pub const F_VERSION_1: u64 = 1 << virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;

/// A virtqueue the driver has set up. Addresses are guest physical; the whole of each part lies within one region of
/// guest RAM.
#[derive(Clone)]
pub struct ActiveQueue {
    /// Its number.
    pub index: u16,
    /// Its length, a power of two.
    pub size: u16,
    /// The address of the descriptor table.
    pub descriptors: u64,
    /// The address of the available ring.
    pub available: u64,
    /// The address of the used ring.
    pub used: u64,
    /// The guest signals it when it has made buffers available. It stays the same for the device's whole life.
    pub kick: Arc<EventFd>,
    /// The device signals its eventfd when it has used buffers.
    pub call: Arc<dyn MsiVector>,
}

/// What a device notifies its transport of, at any time and from any thread. None of the methods waits for anything.
pub trait DeviceEvents: Send + Sync {
    /// The configuration space has changed.
    fn config_changed(&self);

    /// The device cannot continue until the driver has reset it.
    fn needs_reset(&self);
}

/// A virtio device, as its transport sees it. The transport calls [`Self::activate`], [`Self::set_call`] and
/// [`Self::reset`] from one thread at a time, and the first not again before a reset is complete. The other methods may
/// be called at any time. A vCPU waits for each call to return, so none of them waits for anything.
pub trait VirtioDevice: Send + Sync {
    /// Its type (virtio 1.2 §5): 1 is a network card, 2 a block device.
    fn device_type(&self) -> u16;

    /// The features it offers.
    fn features(&self) -> u64;

    /// The maximum size of each of its queues, a power of two.
    fn queue_max_sizes(&self) -> &[u16];

    /// Reads its configuration space. Bytes that do not exist read as zeros.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes its configuration space. Bytes that do not exist are ignored.
    fn write_config(&self, offset: u64, data: &[u8]);

    /// Sets where the device reports events.
    fn attach(&self, events: Arc<dyn DeviceEvents>);

    /// The driver is ready (DRIVER_OK): it has accepted `features` and set up `queues`. The device begins to work on
    /// the queues.
    fn activate(&self, features: u64, queues: Vec<ActiveQueue>);

    /// The device signals `call` for the active queue `index` from now on.
    fn set_call(&self, index: u16, call: Arc<dyn MsiVector>);

    /// The driver has notified queue `index` by a write that no doorbell took.
    fn notify(&self, index: u16);

    /// The driver resets the device, which may have no active queues. [`Self::is_stopped`] returns when that is
    /// complete.
    fn reset(&self);

    /// Whether the last reset is complete: the device accesses the queues no more.
    fn is_stopped(&self) -> bool;
}
