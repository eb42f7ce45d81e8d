//! A worker: it serves one queue group, and the session pauses it to start, stop or change rings.
//!
//! The worker and the session share the group by a mutex. A busy worker would take the mutex again before the session
//! gets it, so the session announces by `pausing` that it wants the group, and the worker waits for `resumed`.

use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::device::Device;
use crate::eventfd::EventFd;
use crate::poll::{Poll, Token};
use crate::queue_group::QueueGroup;
use crate::sigbus;

/// Serves a queue group, by a thread of its own or by the main thread.
pub(crate) struct Worker<'d, D: Device> {
    group: Mutex<QueueGroup<'d, D>>,
    /// The session has the group or waits for it.
    pausing: AtomicBool,
    resumed: Condvar,
    ended: AtomicBool,
    thread: Option<Thread>,
}

/// What the worker's own thread waits on.
struct Thread {
    poll: Arc<Poll>,
    /// Wakes it when it is to end, or when a ring has another turn without a kick.
    wake: EventFd,
}

impl<'d, D: Device> Worker<'d, D> {
    /// A worker without a thread: the main thread waits on `poll` for the group's events as well as its own.
    pub(crate) fn on_main_thread(
        part: &'d mut D,
        rings: u16,
        poll: &Arc<Poll>,
    ) -> io::Result<Self> {
        let group = QueueGroup::new(part, (0, 1), rings, Arc::clone(poll))?;
        Ok(Self::new(group, None))
    }

    /// A worker for part `number` of several, which is to be served by a thread that calls [`serve`](Self::serve).
    pub(crate) fn with_thread(part: &'d mut D, number: (u16, u16), rings: u16) -> io::Result<Self> {
        let poll = Arc::new(Poll::new()?);
        let wake = EventFd::new()?;
        poll.add(&wake, Token::Wake)?;
        let group = QueueGroup::new(part, number, rings, Arc::clone(&poll))?;
        Ok(Self::new(group, Some(Thread { poll, wake })))
    }

    fn new(group: QueueGroup<'d, D>, thread: Option<Thread>) -> Self {
        Self {
            group: Mutex::new(group),
            pausing: AtomicBool::new(false),
            resumed: Condvar::new(),
            ended: AtomicBool::new(false),
            thread,
        }
    }

    /// Whether a thread of its own serves the group.
    pub(crate) fn has_thread(&self) -> bool {
        self.thread.is_some()
    }

    fn lock_at_once(&self) -> MutexGuard<'_, QueueGroup<'d, D>> {
        self.group.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks the group for the thread that serves it, once the session does not want it.
    pub(crate) fn lock(&self) -> MutexGuard<'_, QueueGroup<'d, D>> {
        let mut group = self.lock_at_once();
        while self.pausing.load(Ordering::Relaxed) {
            group = self
                .resumed
                .wait(group)
                .unwrap_or_else(PoisonError::into_inner);
        }
        group
    }

    /// Locks the group for the session. The worker does not serve it until the guard is dropped.
    pub(crate) fn pause(&self) -> Paused<'_, 'd, D> {
        self.pausing.store(true, Ordering::Relaxed);
        Paused {
            group: self.lock_at_once(),
            worker: self,
        }
    }

    /// Serves the group until [`end`](Self::end) is called.
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
            let mut group = self.lock();
            for token in tokens {
                group.handle(token)?;
            }
            group.next_turns();
            idle = !group.has_more();
            if sigbus::is_lost() {
                // The session is notified that this worker ended, and ends with an error that says why.
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

/// A queue group that the session has; its worker is paused until this is dropped.
pub(crate) struct Paused<'a, 'd, D: Device> {
    group: MutexGuard<'a, QueueGroup<'d, D>>,
    worker: &'a Worker<'d, D>,
}

impl<'d, D: Device> Deref for Paused<'_, 'd, D> {
    type Target = QueueGroup<'d, D>;

    fn deref(&self) -> &Self::Target {
        &self.group
    }
}

impl<D: Device> DerefMut for Paused<'_, '_, D> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.group
    }
}

impl<D: Device> Drop for Paused<'_, '_, D> {
    fn drop(&mut self) {
        // The group is still locked: the worker reads the flag and begins to wait with the lock held, so it cannot miss
        // this.
        self.worker.pausing.store(false, Ordering::Relaxed);
        self.worker.resumed.notify_one();
        if self.group.has_more() {
            self.worker.wake();
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
    fn a_thread_that_never_rests_is_paused_by_the_session_and_goes_on_after_it() {
        let handled = Arc::default();
        let mut part = Busy::new(&handled, u64::MAX);
        let worker = Worker::with_thread(&mut part, (1, 2), 2).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| worker.serve());
            for _ in 0..1000 {
                let paused = worker.pause();
                let before = handled.load(Ordering::SeqCst);
                std::thread::yield_now();
                assert_eq!(handled.load(Ordering::SeqCst), before, "it is served");
                drop(paused);
                while handled.load(Ordering::SeqCst) == before {
                    std::thread::yield_now();
                }
            }
            worker.end();
            thread.join().unwrap().unwrap();
        });
    }

    #[test]
    fn a_thread_that_waits_wakes_for_rings_that_have_a_turn_and_for_the_end() {
        let handled = Arc::default();
        let mut part = Busy::new(&handled, 0);
        let worker = Worker::with_thread(&mut part, (1, 2), 2).unwrap();
        // Nothing happens by itself.
        worker.pause().close();
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| worker.serve());
            worker.pause().set_enabled(1, true);
            while worker.pause().has_more() {
                std::thread::yield_now();
            }
            worker.end();
            thread.join().unwrap().unwrap();
        });
    }

    #[test]
    fn a_device_that_cannot_go_on_ends_the_thread_with_its_error() {
        let handled = Arc::default();
        let mut part = Busy::new(&handled, 3);
        let worker = Worker::with_thread(&mut part, (0, 2), 2).unwrap();
        let error = worker.serve().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(handled.load(Ordering::SeqCst), 4);
    }
}
