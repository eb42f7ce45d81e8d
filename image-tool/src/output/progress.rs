//! The progress of a command, printed with `-p` and on SIGUSR1.

use std::sync::{Mutex, PoisonError};

use crate::output;

/// Progress of one command, in percent.
#[derive(Debug)]
pub(crate) struct Progress {
    shown: bool,
    step: f32,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    current: f32,
    printed: f32,
}

impl Progress {
    /// With `shown`, each advance of more than `step` percent is printed.
    pub(crate) fn new(shown: bool, step: f32) -> Self {
        Self {
            shown,
            step,
            state: Mutex::new(State::default()),
        }
    }

    /// Sets the progress.
    pub(crate) fn set(&self, percent: f32) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let percent = percent.min(100.0);
        state.current = percent;
        let step = (percent - state.printed).abs() > self.step;
        if step || percent == 100.0 || percent == 0.0 {
            state.printed = percent;
            if self.shown {
                output::progress(&format!("    ({percent:.2}/100%)"));
            }
        }
    }

    /// Adds to the progress.
    pub(crate) fn advance(&self, percent: f32) {
        let current = self
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .current;
        self.set(current + percent);
    }

    /// Prints the progress to standard error, as SIGUSR1 asks.
    pub(crate) fn print(&self) {
        let current = self
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .current;
        output::notice(format_args!("    ({current:.2}/100%)"));
    }

    /// Ends the progress line.
    pub(crate) fn end(&self) {
        if self.shown {
            output::end_of_progress();
        }
    }
}
