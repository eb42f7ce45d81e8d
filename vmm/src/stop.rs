//! Why the VM stopped. The first reporter wins: a vCPU, the power registers or the main thread, which waits for it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use bulkhead_kvm::Crash;
use rustix::event::{EventfdFlags, eventfd};

use crate::event_monitor::{EventMonitor, Source};

/// Why the VM stopped, or the monitor ends without one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StopReason {
    /// The guest powered off.
    PowerOff,
    /// The guest reset itself, or an API request reset it.
    Reset,
    /// This vCPU cannot go on.
    Crash(u8, Crash),
    /// This signal ended the monitor.
    Signal(libc::c_int),
    /// An API request ended the monitor.
    Api,
}

impl StopReason {
    /// The monitor's exit status.
    pub(crate) fn status(self) -> u8 {
        match self {
            Self::PowerOff | Self::Signal(_) | Self::Api => 0,
            Self::Reset => 3,
            Self::Crash(..) => 4,
        }
    }

    /// Its name in events.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::PowerOff => "power-off",
            Self::Reset => "reset",
            Self::Crash(..) => "crash",
            Self::Signal(_) => "signal",
            Self::Api => "api",
        }
    }

    /// Reports the end of the guest.
    pub(crate) fn report_to(self, events: &EventMonitor) {
        match self {
            Self::Reset => events.report(Source::Vm, "rebooting", &[]),
            Self::Crash(vcpu, crash) => {
                let properties = [("event", crash.to_string()), ("vcpu", vcpu.to_string())];
                events.report(Source::Guest, "panic", &properties);
            }
            Self::PowerOff | Self::Signal(_) | Self::Api => {}
        }
        events.report(Source::Vm, "shutdown", &[("reason", self.name().into())]);
    }
}

/// The reason the VM stopped, once there is one, and an eventfd that signals it.
pub(crate) struct Stop {
    reason: Mutex<Option<StopReason>>,
    event: OwnedFd,
}

impl Stop {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            reason: Mutex::new(None),
            event: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?,
        })
    }

    /// Stops the VM for `reason`, unless it has stopped for another one already.
    pub(crate) fn report(&self, reason: StopReason) {
        let mut first = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert(reason);
        // Each report adds 1 to the counter, so it never gets full.
        let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
    }

    /// The first reason reported.
    pub(crate) fn reason(&self) -> Option<StopReason> {
        *self.reason.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Becomes readable once there is a reason.
    pub(crate) fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
