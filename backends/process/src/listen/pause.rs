//! A pause for a listener whose connections cannot be accepted at the moment.

use std::io::{Error, ErrorKind};
use std::time::{Duration, Instant};

/// How long a listener is not polled after an error.
const PAUSE: Duration = Duration::from_millis(100);
/// How long there is no further warning.
const SILENCE: Duration = Duration::from_secs(60);

/// When to poll a listener again. If accept(2) fails, because of too many open files for example, the connection keeps
/// waiting and the listener stays readable, so a loop that polls it would never sleep.
#[derive(Debug, Default)]
pub struct AcceptPause {
    until: Option<Instant>,
    silent_until: Option<Instant>,
}

impl AcceptPause {
    /// Handles an error of accept(2). Returns `true` if the listener is not to be polled for a while; connections wait
    /// meanwhile. `whom` is for the warning, which is printed once a minute at the most.
    pub fn note(&mut self, whom: &str, error: &Error) -> bool {
        let (pauses, warns) = self.note_at(error, Instant::now());
        if warns {
            let seconds = SILENCE.as_secs();
            crate::warn(&format!(
                "cannot accept {whom}: {error}; trying again until it succeeds, \
                 and not saying so again for {seconds} seconds"
            ));
        }
        pauses
    }

    fn note_at(&mut self, error: &Error, now: Instant) -> (bool, bool) {
        // No connection waits, so the listener is polled at once.
        if matches!(
            error.kind(),
            ErrorKind::WouldBlock | ErrorKind::ConnectionAborted | ErrorKind::Interrupted
        ) {
            return (false, false);
        }
        self.until = now.checked_add(PAUSE);
        let warns = self.silent_until.is_none_or(|until| until <= now);
        if warns {
            self.silent_until = now.checked_add(SILENCE);
        }
        (true, warns)
    }

    /// When to poll the listener again, if not now.
    #[must_use]
    pub fn until(&self) -> Option<Instant> {
        self.until.filter(|&until| until > Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_without_descriptors_is_left_alone_and_spoken_of_once() {
        let mut pause = AcceptPause::default();
        let start = Instant::now();
        let full = Error::from_raw_os_error(libc::EMFILE);
        assert_eq!(pause.note_at(&full, start), (true, true));
        assert_eq!(pause.until, Some(start + PAUSE));
        for round in 1..500 {
            let (pauses, warns) = pause.note_at(&full, start + PAUSE * round);
            assert!(pauses && !warns, "{round}");
        }
        assert_eq!(pause.note_at(&full, start + SILENCE), (true, true));
    }

    #[test]
    fn one_that_has_nobody_waiting_is_not_left_alone() {
        let mut pause = AcceptPause::default();
        for error in [libc::EAGAIN, libc::ECONNABORTED, libc::EINTR] {
            let error = Error::from_raw_os_error(error);
            assert_eq!(pause.note_at(&error, Instant::now()), (false, false));
        }
        assert_eq!(pause.until(), None);
    }
}
