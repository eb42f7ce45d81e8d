//! `bulkhead-kvm`: the machine as KVM knows it: guest RAM, vCPUs, interrupt routes and doorbells.
//!
//! It may touch `/dev/kvm`, the descriptors that come from it, guest RAM and eventfds; it is the only user of
//! `kvm-ioctls`. It must not know any device, boot protocol, configuration or socket: what a vCPU's access means is
//! for the [`Platform`] it is given.
//!
//! `unsafe` is needed for four things that no safe wrapper offers: eventfds read without waiting, handing guest RAM to KVM, reading the union in
//! `kvm_run`, and asking a running vCPU to return from its signal handler.

#![deny(clippy::print_stdout, clippy::print_stderr)] // they wait for whoever reads them, and panic without
mod cpuid;
mod irq;
mod ram;
mod state;
mod vcpu;
mod vm;

pub use irq::{Doorbells, Interrupt, Interrupts};
pub use ram::guest_ram;
pub use state::BootState;
pub use vcpu::{Crash, ExitCounts, Platform, Vcpus};
pub use vm::{Vcpu, Vm};

use std::io;

use thiserror::Error;

/// What went wrong with KVM or guest RAM.
#[derive(Debug, Error)]
pub enum Error {
    /// `/dev/kvm` cannot be opened.
    #[error("cannot open /dev/kvm: {}{}", .0, open_advice(.0))]
    Open(io::Error),
    /// This KVM lacks something every supported one has.
    #[error("this machine's KVM lacks {0}")]
    Missing(&'static str),
    /// KVM runs fewer vCPUs in one machine than asked for.
    #[error("this machine's KVM runs at most {0} vCPUs per guest")]
    TooManyVcpus(usize),
    /// KVM refused a request.
    #[error("KVM refused {0}: {1}")]
    Refused(&'static str, io::Error),
    /// Guest RAM cannot be allocated.
    #[error("cannot allocate guest memory: {0}: {1}")]
    Ram(&'static str, io::Error),
    /// All interrupt routes are taken.
    #[error("no interrupt route is left")]
    NoRoute,
    /// A vCPU's thread cannot be started.
    #[error("cannot start the thread of a vCPU: {0}")]
    Thread(io::Error),
}

fn open_advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => {
            ": load the module kvm_intel or kvm_amd, or turn on virtualization in the firmware"
        }
        io::ErrorKind::PermissionDenied => {
            ": add the user to the group kvm, or run as one that may open it"
        }
        io::ErrorKind::ResourceBusy => ": is another hypervisor in the way?",
        _ => "",
    }
}

/// For `map_err`: names the request KVM refused.
fn refused(request: &'static str) -> impl Fn(kvm_ioctls::Error) -> Error {
    move |error| Error::Refused(request, error.into())
}
