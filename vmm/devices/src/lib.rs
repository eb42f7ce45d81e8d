//! `bulkhead-devices`: buses, serial port, PCI, virtio-pci and the one vhost-user frontend.
//!
//! It may touch guest RAM (to find a vring's place, never to move data), eventfds and the Unix sockets it is told to
//! connect to. It must not depend on KVM, on a backend or on image code: what it needs of a hypervisor is in
//! [`Hypervisor`], and the machine supplies it.

#![deny(clippy::print_stdout, clippy::print_stderr)] // they wait for whoever reads them, and panic without
#![forbid(unsafe_code)]

mod bus;
mod hypervisor;
pub mod pci;
mod serial;
pub mod vhost_user;
pub mod virtio;

pub use bus::{Bus, BusDevice, BusError};
pub use hypervisor::{Hypervisor, MsiVector};
pub use serial::{SERIAL_LEN, Serial};

#[cfg(test)]
mod testing;
