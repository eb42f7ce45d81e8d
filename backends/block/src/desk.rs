//! Requests of one queue that the threads do, and where it finds them when they are done.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use bulkhead_daemon::{Chain, RingError};
use rustix::event::EventfdFlags;
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
    event: OwnedFd,
}

impl Desk {
    pub(crate) fn new() -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self {
            done: Mutex::default(),
            more: Condvar::new(),
            event: rustix::event::eventfd(0, flags)?,
        })
    }

    fn done(&self) -> MutexGuard<'_, Vec<Done>> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts requests down that are done.
    pub(crate) fn put(&self, done: impl IntoIterator<Item = Done>) {
        self.done().extend(done);
        self.more.notify_all();
        // A counter that is full has been signalled already.
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
    }

    /// Readable when requests are done.
    pub(crate) fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// The event was seen.
    pub(crate) fn quiet(&self) {
        // It counts; that there is nothing to read is no error.
        let _ = rustix::io::read(&self.event, &mut [0; 8]);
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
