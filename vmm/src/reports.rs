//! What is said about backends. A guest whose disk stands still is a riddle, unless somebody says why.
//!
//! It is said after a moment: when everything ends, backends may go before the monitor is told, and that is no news.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bulkhead_devices::vhost_user::BackendEvent;
use bulkhead_process::warn;
use rustix::event::{EventfdFlags, eventfd};

/// How long an end may take to arrive.
const MOMENT: Duration = Duration::from_secs(1);
/// A backend that comes and goes says more than anybody wants to know.
const MOST: usize = 64;

/// What has yet to be said.
pub(crate) struct Reports {
    lines: Mutex<VecDeque<(Instant, String)>>,
    noted: OwnedFd,
}

impl Reports {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            lines: Mutex::default(),
            noted: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?,
        })
    }

    fn lines(&self) -> MutexGuard<'_, VecDeque<(Instant, String)>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something happened to the backend at `socket`.
    pub(crate) fn note(&self, socket: &Path, event: &BackendEvent<'_>) {
        let socket = socket.display();
        let line = match event {
            BackendEvent::Lost => format!("{socket}: the backend is gone; waiting for it"),
            BackendEvent::Unusable(error) => error.to_string(),
            BackendEvent::Back => format!("{socket}: the backend is back"),
        };
        let mut lines = self.lines();
        if lines.len() < MOST {
            lines.push_back((Instant::now() + MOMENT, line));
        }
        // It only fails when the counter is full, and then it is readable already.
        let _ = rustix::io::write(&self.noted, &1_u64.to_ne_bytes());
    }

    /// Becomes readable when [`Self::deadline`] may be another one.
    pub(crate) fn noted(&self) -> BorrowedFd<'_> {
        self.noted.as_fd()
    }

    /// When something is to be said.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.lines().front().map(|(when, _)| *when)
    }

    /// Says what is due.
    pub(crate) fn write(&self) {
        for line in self.due(Instant::now()) {
            warn(&line);
        }
    }

    fn due(&self, now: Instant) -> Vec<String> {
        // It only fails when there is nothing to read.
        let _ = rustix::io::read(&self.noted, &mut [0; 8]);
        let mut lines = self.lines();
        let count = lines.iter().take_while(|(when, _)| *when <= now).count();
        lines.drain(..count).map(|(_, line)| line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happens_is_said_after_a_moment_and_in_order() {
        let reports = Reports::new().unwrap();
        let socket = Path::new("/s");
        reports.note(socket, &BackendEvent::Lost);
        reports.note(socket, &BackendEvent::Back);
        let due = reports.deadline().unwrap();
        assert!(reports.due(due - MOMENT / 2).is_empty());
        let said = reports.due(due + MOMENT);
        assert_eq!(said.len(), 2);
        assert!(said[0].ends_with("is gone; waiting for it") && said[1].ends_with("is back"));
        assert_eq!(reports.deadline(), None);
    }

    #[test]
    fn a_flood_does_not_fill_memory() {
        let reports = Reports::new().unwrap();
        (0..1000).for_each(|_| reports.note(Path::new("/s"), &BackendEvent::Lost));
        assert_eq!(reports.lines().len(), MOST);
    }
}
