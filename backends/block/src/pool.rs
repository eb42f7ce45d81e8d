//! Threads for what may wait: requests that the image library does by itself, one call each.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use bulkhead_daemon::{Chain, RingError};
use rustix::event::EventfdFlags;
use vm_memory::GuestMemoryMmap;

use crate::execute::{Disk, is_read};
use crate::request::{Request, Status};

/// A request, with where its data goes to or comes from.
pub(crate) struct Job {
    /// Which queue it is of, and which of its requests.
    pub(crate) queue: u16,
    pub(crate) slot: usize,
    pub(crate) chain: Chain,
    pub(crate) request: Request,
    pub(crate) memory: Arc<GuestMemoryMmap>,
}

/// A request that is done.
pub(crate) struct Done {
    pub(crate) queue: u16,
    pub(crate) slot: usize,
    pub(crate) chain: Chain,
    pub(crate) status: Result<Status, RingError>,
}

/// Changes that are done together, so that tables are written once for all of them.
const BATCH: usize = 64;
/// More threads than this are of no use to one image.
const MAX_THREADS: usize = 4;

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    /// Threads that wait for a job.
    idle: usize,
    ending: bool,
}

/// What the threads and the queues share.
struct Shared {
    disk: Arc<Disk>,
    state: Mutex<State>,
    more: Condvar,
    done: Mutex<Vec<Done>>,
    finished: Condvar,
    /// Tells the queues.
    event: OwnedFd,
}

/// The threads.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    most: usize,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// For a device with `queues`; no thread is started yet.
    pub(crate) fn new(disk: Arc<Disk>, queues: u16) -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self {
            shared: Arc::new(Shared {
                disk,
                state: Mutex::default(),
                more: Condvar::new(),
                done: Mutex::default(),
                finished: Condvar::new(),
                event: rustix::event::eventfd(0, flags)?,
            }),
            threads: Vec::new(),
            // One that flushes does not keep another from allocating.
            most: usize::from(queues).saturating_add(1).min(MAX_THREADS),
        })
    }

    /// Readable when requests are done.
    pub(crate) fn event(&self) -> BorrowedFd<'_> {
        self.shared.event.as_fd()
    }

    /// The event was seen.
    pub(crate) fn quiet(&self) {
        // It counts; that there is nothing to read is no error.
        let _ = rustix::io::read(&self.shared.event, &mut [0; 8]);
    }

    /// Has a thread do `job`.
    pub(crate) fn give(&mut self, job: Job) -> Result<(), RingError> {
        let mut state = locked(&self.shared.state);
        let busy = state.idle <= state.jobs.len();
        if busy && self.threads.len() < self.most {
            drop(state);
            self.start()?;
            state = locked(&self.shared.state);
        }
        state.jobs.push_back(job);
        drop(state);
        self.shared.more.notify_one();
        Ok(())
    }

    fn start(&mut self) -> Result<(), RingError> {
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new()
            .name("storage".to_owned())
            // It needs little.
            .stack_size(256 << 10)
            .spawn(move || shared.work());
        match thread {
            Ok(thread) => self.threads.push(thread),
            Err(error) if self.threads.is_empty() => {
                return Err(RingError::Device(format!("cannot start a thread: {error}")));
            }
            // Those there are will do.
            Err(_) => {}
        }
        Ok(())
    }

    /// Whether requests of `queue` are done.
    pub(crate) fn has_done(&self, queue: u16) -> bool {
        locked(&self.shared.done)
            .iter()
            .any(|done| done.queue == queue)
    }

    /// The requests of `queue` that are done.
    pub(crate) fn take_done(&self, queue: u16) -> Vec<Done> {
        let mut done = locked(&self.shared.done);
        done.extract_if(.., |done| done.queue == queue).collect()
    }

    /// Waits until a request of `queue`, which must have one here, is done.
    pub(crate) fn wait(&self, queue: u16) {
        let mut done = locked(&self.shared.done);
        while !done.iter().any(|done| done.queue == queue) {
            done = self
                .shared
                .finished
                .wait(done)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        locked(&self.shared.state).ending = true;
        self.shared.more.notify_all();
        for thread in self.threads.drain(..) {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// What a thread does.
    fn work(&self) {
        let mut batch = Vec::new();
        loop {
            if !self.take(&mut batch) {
                return;
            }
            let done = self.disk.do_all(batch.drain(..));
            locked(&self.done).extend(done);
            self.finished.notify_all();
            // A counter that is full has been signalled already.
            let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        }
    }

    /// Waits for jobs: one that reads, or several that change something. `false` when there will be none.
    fn take(&self, batch: &mut Vec<Job>) -> bool {
        let mut state = locked(&self.state);
        while state.jobs.is_empty() {
            if state.ending {
                return false;
            }
            state.idle += 1;
            state = self
                .more
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
        while let Some(job) = state.jobs.front() {
            let alone = is_read(&job.request);
            if batch.len() == BATCH || (alone && !batch.is_empty()) {
                break;
            }
            batch.extend(state.jobs.pop_front());
            if alone {
                break;
            }
        }
        true
    }
}
