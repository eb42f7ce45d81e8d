//! `bulkhead-devices`: buses, serial port, power button, PCI, virtio-pci and the one vhost-user frontend.
//!
//! It may touch guest RAM (the rings' indices and entries, never the data), eventfds and the sockets of the configured
//! backends. It must not depend on KVM, on a backend or on image code: what it needs of a hypervisor is the trait
//! [`Hypervisor`], which the machine implements.

#![forbid(unsafe_code)]

mod bus;
mod hypervisor;
mod lifecycle;
pub mod pci;
mod power_button;
mod serial;
pub mod vhost_user;
pub mod virtio;

pub use bus::{Bus, BusDevice, BusError};
pub use hypervisor::{Hypervisor, MsiVector};
pub use lifecycle::Lifecycle;
pub use power_button::PowerButton;
pub use serial::{SERIAL_LEN, Serial};

#[cfg(test)]
mod testing;
