//! The guest's output: a bounded buffer, and the thread that writes it out.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use bulkhead_process::warn;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

/// How many bytes of output are kept for a slow reader. Beyond that, the oldest are lost.
pub(super) const PENDING_MAX: usize = 1 << 20;
/// The most that is written at once.
const CHUNK: usize = 4096;
/// How long the end of the monitor waits for a reader that takes nothing.
const PATIENCE: Duration = Duration::from_secs(1);

/// The output that is not written yet, and its target.
#[derive(Default)]
pub(super) struct Output {
    state: Mutex<State>,
    /// Signalled when `state` changes.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    target: Option<Arc<OwnedFd>>,
    pending: VecDeque<u8>,
    /// The number of bytes that the thread has taken and not written yet.
    taken: usize,
    /// Whether output is kept while there is no target.
    keep: bool,
    /// Output was lost since the buffer was last empty, and a warning was written.
    lossy: bool,
    /// The number of bytes written so far.
    written: u64,
}

impl Output {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on output is kept while nobody is connected.
    pub(super) fn keep_while_alone(&self) {
        self.lock().keep = true;
    }

    /// From now on output goes to `target`.
    pub(super) fn connect(&self, target: Option<OwnedFd>) {
        self.lock().target = target.map(Arc::new);
        self.changed.notify_all();
    }

    /// Puts `bytes` in the buffer. Never waits.
    fn put(&self, bytes: &[u8]) {
        let mut state = self.lock();
        if state.target.is_none() && !state.keep {
            return;
        }
        state.pending.extend(bytes);
        let excess = state.pending.len().saturating_sub(PENDING_MAX);
        state.pending.drain(..excess);
        // Without a client, no warning is needed.
        if excess > 0 && !state.lossy && state.target.is_some() {
            state.lossy = true;
            warn("--serial: the guest's output is not read fast enough: the oldest is lost");
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Waits until all is written, or the target takes no more.
    pub(super) fn drain(&self) {
        let mut state = self.lock();
        while state.target.is_some() && state.pending.len() + state.taken > 0 {
            let before = state.written;
            let waited = self.changed.wait_timeout(state, PATIENCE);
            let (now, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            if timeout.timed_out() && now.written == before {
                return;
            }
            state = now;
        }
    }

    /// Takes the next chunk to write, and its target.
    fn take(&self) -> (Arc<OwnedFd>, Vec<u8>) {
        let mut state = self.lock();
        loop {
            if let Some(target) = state.target.clone()
                && !state.pending.is_empty()
            {
                let len = state.pending.len().min(CHUNK);
                let chunk: Vec<u8> = state.pending.drain(..len).collect();
                state.taken = chunk.len();
                return (target, chunk);
            }
            let waited = self.changed.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Notes that `len` bytes of the chunk were written.
    fn wrote(&self, len: usize) {
        let mut state = self.lock();
        state.taken = state.taken.saturating_sub(len);
        state.written += len as u64;
        state.lossy &= !state.pending.is_empty();
        self.changed.notify_all();
    }

    /// Notes that `target` takes no more. `rest` of the chunk goes to the next target, if output is kept.
    fn lose(&self, target: &Arc<OwnedFd>, rest: &[u8]) {
        let mut state = self.lock();
        state.taken = 0;
        if state
            .target
            .as_ref()
            .is_some_and(|now| Arc::ptr_eq(now, target))
        {
            state.target = None;
        }
        if state.keep {
            rest.iter()
                .rev()
                .for_each(|byte| state.pending.push_front(*byte));
        } else {
            state.pending.clear();
        }
        self.changed.notify_all();
    }
}

/// Starts the thread that writes.
pub(super) fn start(output: Arc<Output>, enter: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new()
        .name("serial-output".into())
        .spawn(move || {
            enter();
            loop {
                let (target, chunk) = output.take();
                write_all(&output, &target, &chunk);
            }
        })?;
    Ok(())
}

/// Writes a chunk. It may wait for ever.
fn write_all(output: &Output, target: &Arc<OwnedFd>, mut chunk: &[u8]) {
    while !chunk.is_empty() {
        match rustix::io::write(target, chunk) {
            Ok(len) => {
                output.wrote(len);
                chunk = chunk.get(len..).unwrap_or_default();
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                // The next write returns an error, if there is one.
                let _ = poll(&mut [PollFd::new(target, PollFlags::OUT)], None);
            }
            // The chunk is dropped. A full disk may have space later.
            Err(Errno::NOSPC | Errno::DQUOT | Errno::FBIG) => {
                output.wrote(chunk.len());
                return;
            }
            Err(_) => return output.lose(target, chunk),
        }
    }
}

pub(super) struct Writer(pub(super) Arc<Output>);

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.put(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
