//! Flushing the target during the copy, so that the flush at the end is short.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use qcow::Image;

/// Bytes between two flushes.
const STEP: u64 = 64 << 20;

#[derive(Debug, Default)]
struct State {
    /// Bytes written since the last flush began.
    written: u64,
    ended: bool,
}

/// Counts the bytes that the writers have written, for the thread that flushes.
#[derive(Debug, Default)]
pub(super) struct Writeback {
    state: Mutex<State>,
    changed: Condvar,
}

impl Writeback {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds `len` written bytes.
    pub(super) fn wrote(&self, len: u64) {
        let mut state = self.state();
        state.written += len;
        if state.written >= STEP {
            self.changed.notify_one();
        }
    }

    /// Ends the thread that flushes.
    pub(super) fn end(&self) {
        self.state().ended = true;
        self.changed.notify_one();
    }

    /// Flushes `target` each [`STEP`] bytes until the copy ends.
    pub(super) fn run(&self, target: &Image) -> qcow::Result<()> {
        loop {
            let mut state = self.state();
            while state.written < STEP && !state.ended {
                state = self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            if state.ended {
                return Ok(());
            }
            state.written = 0;
            drop(state);
            target.flush()?;
        }
    }
}
