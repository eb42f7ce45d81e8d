//! Warnings about backends, so that people see why a guest's disk does not answer.
//!
//! They are written after a delay: when a guest and its backends are ended together, a backend may end before the
//! monitor gets its signal, and that needs no warning.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bulkhead_devices::vhost_user::BackendEvent;
use bulkhead_process::warn;
use rustix::event::{EventfdFlags, eventfd};

/// How long the monitor's signal may come after a backend's.
const DELAY: Duration = Duration::from_secs(1);
/// A backend that keeps dying adds no more warnings than this.
const MAX_WARNINGS: usize = 64;

/// The warnings that are not written yet.
pub(crate) struct BackendWarnings {
    /// When each is due, and its text.
    lines: Mutex<VecDeque<(Instant, String)>>,
    changed: OwnedFd,
}

impl BackendWarnings {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            lines: Mutex::default(),
            changed: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?,
        })
    }

    fn lines(&self) -> MutexGuard<'_, VecDeque<(Instant, String)>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the warning about an event of the backend at `socket`.
    pub(crate) fn add(&self, socket: &Path, event: &BackendEvent<'_>) {
        let socket = socket.display();
        let line = match event {
            BackendEvent::Lost => format!("{socket}: the backend is gone; waiting for it"),
            BackendEvent::Unusable(error) => error.to_string(),
            BackendEvent::Back => format!("{socket}: the backend is back"),
        };
        let mut lines = self.lines();
        if lines.len() < MAX_WARNINGS {
            lines.push_back((Instant::now() + DELAY, line));
        }
        // It only fails when the counter is full, and then it is readable already.
        let _ = rustix::io::write(&self.changed, &1_u64.to_ne_bytes());
    }

    /// Becomes readable when [`Self::deadline`] may have changed.
    pub(crate) fn changed(&self) -> BorrowedFd<'_> {
        self.changed.as_fd()
    }

    /// When the next warning is due.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.lines().front().map(|(when, _)| *when)
    }

    /// Writes the warnings that are due.
    pub(crate) fn write_due(&self) {
        for line in self.take_due(Instant::now()) {
            warn(&line);
        }
    }

    fn take_due(&self, now: Instant) -> Vec<String> {
        // It only fails when the counter is zero.
        let _ = rustix::io::read(&self.changed, &mut [0; 8]);
        let mut lines = self.lines();
        let count = lines.iter().take_while(|(when, _)| *when <= now).count();
        lines.drain(..count).map(|(_, line)| line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_written_after_a_delay_and_in_order() {
        let warnings = BackendWarnings::new().unwrap();
        let socket = Path::new("/s");
        warnings.add(socket, &BackendEvent::Lost);
        warnings.add(socket, &BackendEvent::Back);
        let due = warnings.deadline().unwrap();
        assert!(warnings.take_due(due - DELAY / 2).is_empty());
        let written = warnings.take_due(due + DELAY);
        assert_eq!(written.len(), 2);
        assert!(written[0].ends_with("is gone; waiting for it") && written[1].ends_with("is back"));
        assert_eq!(warnings.deadline(), None);
    }

    #[test]
    fn a_flood_does_not_fill_memory() {
        let warnings = BackendWarnings::new().unwrap();
        (0..1000).for_each(|_| warnings.add(Path::new("/s"), &BackendEvent::Lost));
        assert_eq!(warnings.lines().len(), MAX_WARNINGS);
    }
}
