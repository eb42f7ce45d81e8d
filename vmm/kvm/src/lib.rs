//! `bulkhead-kvm`: a VM of KVM: guest RAM, vCPUs, interrupt routes and doorbells.
//!
//! It may touch `/dev/kvm` and its descriptors, guest RAM and eventfds, and is the only user of `kvm-ioctls`. It must
//! not know any device, configuration or socket: a [`Platform`] handles the vCPUs' accesses. Of the boot protocols it
//! knows only how a kernel is entered.
//!
//! `unsafe` is needed for four things that no safe wrapper offers: reading an eventfd without waiting, giving guest RAM
//! to KVM, reading the union in `kvm_run`, and making a running vCPU return, in its signal handler.

mod cpuid;
mod irq;
mod probe;
mod ram;
mod state;
mod vcpu;
mod vm;

pub use irq::{Doorbells, Interrupt, Interrupts};
pub use probe::{Verdict, probe};
pub use ram::guest_ram;
pub use vcpu::{Crash, ExitCounts, Platform, Vcpus};
pub use vm::{Vcpu, Vm};

use std::io;

use thiserror::Error;

/// Why KVM or guest RAM cannot be used.
#[derive(Debug, Error)]
pub enum Error {
    /// `/dev/kvm` cannot be opened.
    #[error("cannot open /dev/kvm: {}{}", .0, open_advice(.0))]
    Open(io::Error),
    /// This KVM lacks a feature that is required.
    #[error("this machine's KVM lacks {0}")]
    Missing(&'static str),
    /// The configuration has more vCPUs than KVM runs in one VM.
    #[error("this machine's KVM runs at most {0} vCPUs per guest")]
    TooManyVcpus(usize),
    /// KVM refused a request.
    #[error("KVM refused {0}: {1}")]
    Refused(&'static str, io::Error),
    /// Guest RAM cannot be allocated.
    #[error("cannot allocate guest memory: {0}: {1}")]
    Ram(&'static str, io::Error),
    /// All interrupt routes are in use.
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

/// Converts an error of KVM, for `map_err`. `request` names what it refused.
fn refused(request: &'static str) -> impl Fn(kvm_ioctls::Error) -> Error {
    move |error| Error::Refused(request, error.into())
}
