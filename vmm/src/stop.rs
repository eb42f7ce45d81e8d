//! Why the VM stopped. The first reporter wins: a vCPU, the power registers or the main thread, which waits for it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use bulkhead_kvm::Crash;
use rustix::event::{EventfdFlags, eventfd};

/// Why the VM stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StopReason {
    /// The guest powered off.
    PowerOff,
    /// The guest reset the machine.
    Reset,
    /// This vCPU cannot go on.
    Crash(u8, Crash),
    /// A signal or an API request ended the monitor.
    Requested,
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
