//! What the processes around a dnsmasq send each other, and how long each of them may take to stop.
//!
//! Commands go down, from the helper to a supervisor, on its standard input. Reports go up, from init to the supervisor
//! and on to the helper, on standard output. When a process dies, the kernel closes its pipes, and the processes at
//! their other ends stop.
//!
//! A helper may run longer than its file lasts: after an upgrade, a supervisor of the old version starts programs of
//! the new one. So commands and reports keep their values.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// The helper's command to start dnsmasq.
pub(super) const START: u8 = b'g';
/// The helper's command to stop dnsmasq and start it again, because its bridge has been created again.
pub(super) const RESTART: u8 = b'a';

/// The report that dnsmasq listens. Any other report is an error message, unless it begins with [`WARNING`].
pub(super) const READY: &str = "ready\n";
/// The beginning of a report that is not an error.
pub(super) const WARNING: &str = "warning: ";

/// How long init waits for dnsmasq to stop after SIGTERM.
pub(super) const DNSMASQ_STOP_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the supervisor waits for init to stop; longer than init waits for dnsmasq.
pub(super) const INIT_STOP_TIMEOUT: Duration = Duration::from_secs(4);
/// How long the helper waits for a supervisor to stop; longer than the supervisor waits for init.
pub(super) const SUPERVISOR_STOP_TIMEOUT: Duration = Duration::from_secs(6);

/// Reads a command from standard input; `None` when the helper has closed it or died.
pub(super) fn read_command() -> io::Result<Option<u8>> {
    let mut byte = [0];
    let stdin = io::stdin();
    match rustix::io::retry_on_intr(|| rustix::io::read(&stdin, &mut byte))? {
        0 => Ok(None),
        _ => Ok(byte.first().copied()),
    }
}

/// Waits until at least one descriptor is readable or closed, or until the timeout; returns which of them are.
pub(super) fn poll_readable<const N: usize>(
    fds: [BorrowedFd<'_>; N],
    timeout: Option<Duration>,
) -> io::Result<[bool; N]> {
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    let mut polled = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut polled, left.as_ref()) {
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
            Ok(_) => return Ok(polled.each_ref().map(|fd| !fd.revents().is_empty())),
        }
    }
}
