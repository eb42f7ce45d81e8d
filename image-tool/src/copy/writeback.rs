//! Flushing the target while the copy goes on, so that little is left for the flush at its end.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use qcow::Image;

/// The target is flushed when so many bytes have been written since the last time.
const STEP: u64 = 64 << 20;

#[derive(Debug, Default)]
struct State {
    /// Bytes written since the last flush began.
    written: u64,
    ended: bool,
}

/// What those who write tell the one who flushes.
#[derive(Debug, Default)]
pub(super) struct Writeback {
    state: Mutex<State>,
    changed: Condvar,
}

impl Writeback {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `len` more bytes were written.
    pub(super) fn wrote(&self, len: u64) {
        let mut state = self.state();
        state.written += len;
        if state.written >= STEP {
            self.changed.notify_one();
        }
    }

    /// Nothing more will be written.
    pub(super) fn end(&self) {
        self.state().ended = true;
        self.changed.notify_one();
    }

    /// Flushes `target` until the end.
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
