//! Requests of one queue that the threads do, and where it finds them when they are done.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use bulkhead_daemon::{Chain, EventFd, RingError};
use vm_memory::GuestMemoryMmap;

use crate::request::{Request, Status};

/// A request, with where its data goes to or comes from.
pub(crate) struct Job {
    /// Which of the requests of its queue.
    pub(crate) slot: usize,
    pub(crate) chain: Chain,
    pub(crate) request: Request,
    pub(crate) memory: Arc<GuestMemoryMmap>,
    /// Where it goes when it is done.
    pub(crate) desk: Arc<Desk>,
}

/// A request that is done.
pub(crate) struct Done {
    pub(crate) slot: usize,
    pub(crate) chain: Chain,
    pub(crate) status: Result<Status, RingError>,
}

/// What is done of one queue's requests.
pub(crate) struct Desk {
    done: Mutex<Vec<Done>>,
    more: Condvar,
    /// Tells the queue.
    event: EventFd,
}

impl Desk {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            done: Mutex::default(),
            more: Condvar::new(),
            event: EventFd::new()?,
        })
    }

    fn done(&self) -> MutexGuard<'_, Vec<Done>> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts requests down that are done.
    pub(crate) fn put(&self, done: impl IntoIterator<Item = Done>) {
        self.done().extend(done);
        self.more.notify_all();
        self.event.signal();
    }

    /// Readable when requests are done.
    pub(crate) fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// The event was seen.
    pub(crate) fn clear_event(&self) {
        self.event.clear();
    }

    /// What is done.
    pub(crate) fn take(&self) -> Vec<Done> {
        std::mem::take(&mut *self.done())
    }

    /// Waits until something is done; there must be something to come.
    pub(crate) fn wait(&self) {
        let mut done = self.done();
        while done.is_empty() {
            done = self.more.wait(done).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
