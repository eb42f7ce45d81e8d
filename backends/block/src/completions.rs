//! Requests of one queue that the thread pool has executed, and that the queue has yet to complete.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use bulkhead_daemon::{Chain, EventFd, RingError};

use crate::request::Status;

/// A request that was executed.
pub(crate) struct Completion {
    pub(crate) slot: usize,
    pub(crate) chain: Chain,
    pub(crate) status: Result<Status, RingError>,
}

/// The list of one queue's completions, and the eventfd that wakes the queue.
pub(crate) struct Completions {
    list: Mutex<Vec<Completion>>,
    added: Condvar,
    event: EventFd,
}

impl Completions {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            list: Mutex::default(),
            added: Condvar::new(),
            event: EventFd::new()?,
        })
    }

    fn list(&self) -> MutexGuard<'_, Vec<Completion>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds completions and wakes the queue.
    pub(crate) fn add(&self, completions: impl IntoIterator<Item = Completion>) {
        self.list().extend(completions);
        self.added.notify_all();
        self.event.signal();
    }

    /// Readable when there are completions.
    pub(crate) fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// Clears the event. To be called before the completions are taken.
    pub(crate) fn clear_event(&self) {
        self.event.clear();
    }

    /// Takes all completions.
    pub(crate) fn take(&self) -> Vec<Completion> {
        std::mem::take(&mut *self.list())
    }

    /// Waits until there is a completion. Call it only while the pool has a request of this queue.
    pub(crate) fn wait(&self) {
        let mut list = self.list();
        while list.is_empty() {
            list = self
                .added
                .wait(list)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}
