//! Threads for what may wait: requests that the image library does by itself, one call each.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use bulkhead_daemon::RingError;

use crate::desk::Job;
use crate::execute::{Disk, is_read};

/// Changes that are done together, so that tables are written once for all of them.
const BATCH: usize = 64;
/// More threads than this are of no use to one image.
const MAX_THREADS: usize = 4;

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: Vec<JoinHandle<()>>,
    /// How many of them wait for a job, and how many have not begun to.
    idle: usize,
    starting: usize,
    ending: bool,
}

/// What the threads and the queues share.
struct Shared {
    disk: Arc<Disk>,
    state: Mutex<State>,
    more: Condvar,
}

/// The threads.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    most: usize,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// For a device with `queues`; no thread is started yet.
    pub(crate) fn new(disk: Arc<Disk>, queues: u16) -> Self {
        Self {
            shared: Arc::new(Shared {
                disk,
                state: Mutex::default(),
                more: Condvar::new(),
            }),
            // One that flushes does not keep another from allocating.
            most: usize::from(queues).saturating_add(1).min(MAX_THREADS),
        }
    }

    /// Has threads do `jobs`, and leaves none there. After an error none of them is done.
    pub(crate) fn give(&self, jobs: &mut Vec<Job>) -> Result<(), RingError> {
        let reads = jobs.iter().filter(|job| is_read(&job.request)).count();
        // Changes are done together.
        let wanted = reads + usize::from(reads < jobs.len());
        let mut state = locked(&self.shared.state);
        let waiting = state.jobs.len();
        state.jobs.extend(jobs.drain(..));
        let wanted = wanted + waiting.min(1);
        while state.idle + state.starting < wanted && state.threads.len() < self.most {
            match self.start(&mut state) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    // Without any thread there were no others.
                    state.jobs.clear();
                    return Err(error);
                }
            }
        }
        let awake = wanted.min(state.idle);
        drop(state);
        for _ in 0..awake {
            self.shared.more.notify_one();
        }
        Ok(())
    }

    fn start(&self, state: &mut State) -> Result<bool, RingError> {
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new()
            .name("storage".to_owned())
            // It needs little.
            .stack_size(256 << 10)
            .spawn(move || shared.work());
        match thread {
            Ok(thread) => {
                state.threads.push(thread);
                state.starting += 1;
            }
            Err(error) if state.threads.is_empty() => {
                return Err(RingError::Device(format!("cannot start a thread: {error}")));
            }
            // Those there are will do.
            Err(_) => return Ok(false),
        }
        Ok(true)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let mut state = locked(&self.shared.state);
        state.ending = true;
        let threads = std::mem::take(&mut state.threads);
        drop(state);
        self.shared.more.notify_all();
        for thread in threads {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// What a thread does.
    fn work(&self) {
        let mut batch = Vec::new();
        locked(&self.state).starting -= 1;
        loop {
            if !self.take(&mut batch) {
                return;
            }
            let mut done = self.disk.do_all(batch.drain(..));
            // Each queue is told once.
            while let Some(desk) = done.first().map(|(desk, _)| Arc::clone(desk)) {
                let its = done.extract_if(.., |(other, _)| Arc::ptr_eq(other, &desk));
                desk.put(its.map(|(_, done)| done));
            }
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
        // Who gave several told as many threads at the most as were waiting then.
        if !state.jobs.is_empty() && state.idle > 0 {
            self.more.notify_one();
        }
        true
    }
}
