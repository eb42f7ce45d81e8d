//! How a guest ends, told by whoever notices first to the thread that waits for it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use bulkhead_kvm::Crash;
use rustix::event::{EventfdFlags, eventfd};

/// How a guest has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It powered itself off.
    PowerOff,
    /// It asked for a reset.
    Reset,
    /// A vCPU of it cannot go on.
    Crash(u8, Crash),
    /// The monitor was told to end.
    Stopped,
}

/// A place for the first ending there is.
pub(crate) struct Endings {
    first: Mutex<Option<Ending>>,
    told: OwnedFd,
}

impl Endings {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            first: Mutex::new(None),
            told: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?,
        })
    }

    /// The guest has ended like this, if not otherwise before.
    pub(crate) fn tell(&self, ending: Ending) {
        let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert(ending);
        // The counter cannot be full: nobody else writes to it, and not that often.
        let _ = rustix::io::write(&self.told, &1_u64.to_ne_bytes());
    }

    /// The first ending told.
    pub(crate) fn first(&self) -> Option<Ending> {
        *self.first.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Becomes readable once there is one.
    pub(crate) fn told(&self) -> BorrowedFd<'_> {
        self.told.as_fd()
    }
}
