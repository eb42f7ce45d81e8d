//! Whose turn it is with a part of the device: the thread's that serves its rings, or the session's, which starts and stops them.

use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::device::Device;
use crate::eventfd::EventFd;
use crate::poll::{Poll, Token};
use crate::sigbus;
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
    wake: EventFd,
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
        let wake = EventFd::new()?;
        poll.add(&wake, Token::Wake)?;
        let worker = Worker::new(part, number, rings, Arc::clone(&poll))?;
        Ok(Self::new(worker, Some(Thread { poll, wake })))
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
            if sigbus::is_lost() {
                // The session is alarmed, and ends for this reason.
                break;
            }
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
            thread.wake.signal();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::RingError;
    use crate::queue::Queue;
    use std::os::fd::{AsFd, BorrowedFd};
    use std::sync::atomic::AtomicU64;

    /// Has an event that happens all the time.
    struct Busy {
        event: EventFd,
        handled: Arc<AtomicU64>,
        most: u64,
    }

    impl Busy {
        fn new(handled: &Arc<AtomicU64>, most: u64) -> Self {
            let event = EventFd::new().unwrap();
            event.signal();
            let handled = Arc::clone(handled);
            Self {
                event,
                handled,
                most,
            }
        }
    }

    impl Device for Busy {
        type Event = ();

        fn features(&self) -> u64 {
            0
        }

        fn queues(&self) -> u16 {
            2
        }

        fn config(&self) -> Vec<u8> {
            Vec::new()
        }

        fn process(&mut self, _: &mut Queue<'_>) -> Result<(), RingError> {
            Ok(())
        }

        fn events(&self) -> Vec<(BorrowedFd<'_>, ())> {
            vec![(self.event.as_fd(), ())]
        }

        fn handle(&mut self, (): (), _: &mut crate::Queues<'_>) -> io::Result<()> {
            if self.handled.fetch_add(1, Ordering::SeqCst) >= self.most {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.event.signal();
            Ok(())
        }
    }

    #[test]
    fn a_thread_that_never_rests_leaves_the_part_to_the_session_and_goes_on_after_it() {
        let handled = Arc::default();
        let mut part = Busy::new(&handled, u64::MAX);
        let post = Post::apart(&mut part, (1, 2), 2).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| post.serve());
            for _ in 0..1000 {
                let borrowed = post.borrow();
                let before = handled.load(Ordering::SeqCst);
                std::thread::yield_now();
                assert_eq!(handled.load(Ordering::SeqCst), before, "it is served");
                drop(borrowed);
                while handled.load(Ordering::SeqCst) == before {
                    std::thread::yield_now();
                }
            }
            post.end();
            thread.join().unwrap().unwrap();
        });
    }

    #[test]
    fn a_thread_that_waits_is_told_of_rings_that_have_a_turn_and_of_the_end() {
        let handled = Arc::default();
        let mut part = Busy::new(&handled, 0);
        let post = Post::apart(&mut part, (1, 2), 2).unwrap();
        // Nothing happens by itself.
        post.borrow().close();
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| post.serve());
            post.borrow().set_enabled(1, true);
            while post.borrow().has_more() {
                std::thread::yield_now();
            }
            post.end();
            thread.join().unwrap().unwrap();
        });
    }

    #[test]
    fn a_device_that_cannot_go_on_ends_the_thread_with_its_error() {
        let handled = Arc::default();
        let mut part = Busy::new(&handled, 3);
        let post = Post::apart(&mut part, (0, 2), 2).unwrap();
        let error = post.serve().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(handled.load(Ordering::SeqCst), 4);
    }
}
