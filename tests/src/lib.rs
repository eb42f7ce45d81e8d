//! `bulkhead-tests`: end-to-end tests: real KVM, real taps, real kernels, real peers.
//!
//! Three layers: data planes, image tool and net helper natively; the monitor on this machine's KVM with a
//! bare-metal guest; Linux guests end to end, on the nested bench where KVM cannot run Linux. May touch whatever
//! the machine has; nothing may depend on it.

#![allow(
    clippy::disallowed_macros,
    reason = "tests, benches and the demo print what they find"
)]

pub mod demo;
pub mod e2e;
pub mod exits;
pub mod figures;
pub mod guest;
pub mod guest_command;
pub mod guest_linux;
pub mod guest_run;
pub mod hash;
pub mod host_state;
pub mod initramfs;
pub mod inject;
pub mod kernel;
pub mod linux_under_qemu;
pub mod nested;
pub mod probe;
pub mod web;
pub mod workplace;
