//! A listener that has a connection to give and cannot.

use std::io::{Error, ErrorKind};
use std::time::{Duration, Instant};

/// How long a listener is left alone.
const PAUSE: Duration = Duration::from_millis(100);
/// How long nothing more is said of it.
const SILENCE: Duration = Duration::from_secs(60);

/// When a listener is to be asked again. Where there are too many open files, say, a connection that waits stays
/// waiting and the listener stays readable: whoever polls it would never sleep.
#[derive(Debug, Default)]
pub struct AcceptPause {
    until: Option<Instant>,
    silent_until: Option<Instant>,
}

impl AcceptPause {
    /// Notes an error of accept(2). `true` if the listener is to be left alone for a while; whoever connects waits
    /// meanwhile. `whom` is for the warning, of which there is one a minute at the most.
    pub fn note(&mut self, whom: &str, error: &Error) -> bool {
        let (pauses, warns) = self.note_at(error, Instant::now());
        if warns {
            let seconds = SILENCE.as_secs();
            crate::warn(&format!(
                "cannot accept {whom}: {error}; trying again until it succeeds, and not saying so again for {seconds} seconds"
            ));
        }
        pauses
    }

    fn note_at(&mut self, error: &Error, now: Instant) -> (bool, bool) {
        // Nobody waits any more: the next one is asked for at once.
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

    /// When the listener is to be polled again, if it is to be left alone now.
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
