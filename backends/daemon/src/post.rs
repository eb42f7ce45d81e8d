//! Whose turn it is with a part of the device: the thread's that serves its rings, or the session's, which starts and stops them.

use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, eventfd};

use crate::device::Device;
use crate::poll::{Poll, Token};
use crate::worker::Worker;

/// A part of the device, and who has it.
pub(crate) struct Post<'d, D: Device> {
    worker: Mutex<Worker<'d, D>>,
    /// The session has it or wants it; the thread does not take it then, however fast it is.
    wanted: AtomicBool,
    returned: Condvar,
    ended: AtomicBool,
    thread: Option<Thread>,
}

/// How a thread of its own learns what happens.
struct Thread {
    poll: Arc<Poll>,
    /// Wakes it where no ring or device does.
    bell: OwnedFd,
}

impl<'d, D: Device> Post<'d, D> {
    /// A part that the session's thread serves, too: what happens is told by `poll`, along with the rest.
    pub(crate) fn here(part: &'d mut D, rings: u16, poll: &Arc<Poll>) -> io::Result<Self> {
        let worker = Worker::new(part, (0, 1), rings, Arc::clone(poll))?;
        Ok(Self::new(worker, None))
    }

    /// One part of several, each with a thread that is to [`serve`](Self::serve) it.
    pub(crate) fn apart(part: &'d mut D, number: (u16, u16), rings: u16) -> io::Result<Self> {
        let poll = Arc::new(Poll::new()?);
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        poll.add(&bell, Token::Bell)?;
        let worker = Worker::new(part, number, rings, Arc::clone(&poll))?;
        Ok(Self::new(worker, Some(Thread { poll, bell })))
    }

    fn new(worker: Worker<'d, D>, thread: Option<Thread>) -> Self {
        Self {
            worker: Mutex::new(worker),
            wanted: AtomicBool::new(false),
            returned: Condvar::new(),
            ended: AtomicBool::new(false),
            thread,
        }
    }

    /// Whether it has a thread.
    pub(crate) fn is_apart(&self) -> bool {
        self.thread.is_some()
    }

    fn lock(&self) -> MutexGuard<'_, Worker<'d, D>> {
        self.worker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The part, for the thread that serves it.
    pub(crate) fn take(&self) -> MutexGuard<'_, Worker<'d, D>> {
        let mut worker = self.lock();
        while self.wanted.load(Ordering::Relaxed) {
            worker = self
                .returned
                .wait(worker)
                .unwrap_or_else(PoisonError::into_inner);
        }
        worker
    }

    /// The part, for the session: nothing happens to it meanwhile.
    pub(crate) fn borrow(&self) -> Borrowed<'_, 'd, D> {
        self.wanted.store(true, Ordering::Relaxed);
        Borrowed {
            worker: self.lock(),
            post: self,
        }
    }

    /// What the part's thread does, until it is told to end.
    ///
    /// # Errors
    /// The device's, when it cannot go on.
    pub(crate) fn serve(&self) -> io::Result<()> {
        let Some(thread) = &self.thread else {
            return Ok(());
        };
        let mut idle = true;
        while !self.ended.load(Ordering::Acquire) {
            let tokens = thread.poll.wait(idle)?;
            let mut worker = self.take();
            for token in tokens {
                worker.happened(token)?;
            }
            worker.next_turns();
            idle = !worker.has_more();
        }
        Ok(())
    }

    /// Has the thread end.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.wake();
    }

    fn wake(&self) {
        if let Some(thread) = &self.thread {
            // A counter that is full has been signalled already.
            let _ = rustix::io::write(&thread.bell, &1u64.to_ne_bytes());
        }
    }
}

/// A part that the session has.
pub(crate) struct Borrowed<'a, 'd, D: Device> {
    worker: MutexGuard<'a, Worker<'d, D>>,
    post: &'a Post<'d, D>,
}

impl<'d, D: Device> Deref for Borrowed<'_, 'd, D> {
    type Target = Worker<'d, D>;

    fn deref(&self) -> &Self::Target {
        &self.worker
    }
}

impl<D: Device> DerefMut for Borrowed<'_, '_, D> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.worker
    }
}

impl<D: Device> Drop for Borrowed<'_, '_, D> {
    fn drop(&mut self) {
        // While it is still locked: the thread looks at this, and begins to wait, with the lock.
        self.post.wanted.store(false, Ordering::Relaxed);
        self.post.returned.notify_one();
        if self.worker.has_more() {
            self.post.wake();
        }
    }
}
