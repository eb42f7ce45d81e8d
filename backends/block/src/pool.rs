//! The thread pool: it executes the requests that may have to wait, by the image library's own calls.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use bulkhead_daemon::RingError;

use crate::execute::{Disk, Job, is_read};

/// How many requests that change the disk are executed together, so that the tables are written once for all of them.
const BATCH: usize = 64;
/// More threads than this are of no use to one image.
const MAX_THREADS: usize = 4;

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: Vec<JoinHandle<()>>,
    /// How many threads wait for a job.
    idle: usize,
    /// How many threads do not run yet.
    starting: usize,
    ending: bool,
}

/// What the threads share with the owner of the pool.
struct Inner {
    disk: Arc<Disk>,
    state: Mutex<State>,
    more: Condvar,
}

/// The threads.
pub(crate) struct Pool {
    inner: Arc<Inner>,
    most: usize,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// For a device with `queues`; no thread is started yet.
    pub(crate) fn new(disk: Arc<Disk>, queues: u16) -> Self {
        Self {
            inner: Arc::new(Inner {
                disk,
                state: Mutex::default(),
                more: Condvar::new(),
            }),
            // One thread more than queues, so that a flush does not keep another request from allocating.
            most: usize::from(queues).saturating_add(1).min(MAX_THREADS),
        }
    }

    /// Has the threads execute `jobs`, which is empty afterwards. After an error none of them is executed.
    pub(crate) fn submit(&self, jobs: &mut Vec<Job>) -> Result<(), RingError> {
        let reads = jobs.iter().filter(|job| is_read(&job.request)).count();
        // Requests that change the disk are executed together, by one thread.
        let wanted = reads + usize::from(reads < jobs.len());
        let mut state = locked(&self.inner.state);
        let waiting = state.jobs.len();
        state.jobs.extend(jobs.drain(..));
        let wanted = wanted + waiting.min(1);
        while state.idle + state.starting < wanted && state.threads.len() < self.most {
            match self.start(&mut state) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    // There is no thread at all, so all jobs in the queue are these.
                    state.jobs.clear();
                    return Err(error);
                }
            }
        }
        let awake = wanted.min(state.idle);
        drop(state);
        for _ in 0..awake {
            self.inner.more.notify_one();
        }
        Ok(())
    }

    fn start(&self, state: &mut State) -> Result<bool, RingError> {
        let inner = Arc::clone(&self.inner);
        let thread = std::thread::Builder::new()
            .name("storage".to_owned())
            // A request needs little.
            .stack_size(256 << 10)
            .spawn(move || inner.work());
        match thread {
            Ok(thread) => {
                state.threads.push(thread);
                state.starting += 1;
            }
            Err(error) if state.threads.is_empty() => {
                return Err(RingError::Device(format!("cannot start a thread: {error}")));
            }
            // The threads that there are have to do.
            Err(_) => return Ok(false),
        }
        Ok(true)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let mut state = locked(&self.inner.state);
        state.ending = true;
        let threads = std::mem::take(&mut state.threads);
        drop(state);
        self.inner.more.notify_all();
        for thread in threads {
            // If the thread panicked, the panic was printed.
            let _ = thread.join();
        }
    }
}

impl Inner {
    /// The main function of a thread.
    fn work(&self) {
        let mut batch = Vec::new();
        locked(&self.state).starting -= 1;
        loop {
            if !self.take(&mut batch) {
                return;
            }
            let mut done = self.disk.execute_all(batch.drain(..));
            // Each queue is woken once.
            while let Some(completions) = done.first().map(|(list, _)| Arc::clone(list)) {
                let its = done.extract_if(.., |(list, _)| Arc::ptr_eq(list, &completions));
                completions.add(its.map(|(_, completion)| completion));
            }
        }
    }

    /// Waits for jobs and takes one that reads, or several that change the disk. Returns `false` when the pool ends.
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
        // `submit` woke no more threads than were idle at the time.
        if !state.jobs.is_empty() && state.idle > 0 {
            self.more.notify_one();
        }
        true
    }
}
