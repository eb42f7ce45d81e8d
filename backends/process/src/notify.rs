//! Readiness: `READY=1` to the socket that `$NOTIFY_SOCKET` names (sd_notify(3)), for systemd and `bulkhead run` alike.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, send, socket_with,
};

use crate::signals::SignalFd;

/// How long to wait for a service manager that does not read.
const PATIENCE: Duration = Duration::from_secs(2);

/// The connection, once `prepare` was called. It is closed after the notification.
static SOCKET: Mutex<Option<Option<OwnedFd>>> = Mutex::new(None);

/// Opens the connection while the process may still open sockets. Confinement calls this; a second call does nothing.
pub(crate) fn prepare() {
    let mut socket = SOCKET.lock().unwrap_or_else(PoisonError::into_inner);
    socket.get_or_insert_with(|| open(std::env::var_os("NOTIFY_SOCKET")?).ok());
}

/// Notifies the service manager, if there is one, that the program is ready. Then closes the connection, since a
/// datagram socket could send to other sockets than the service manager's.
///
/// If its queue stays full for two seconds, one warning says so and the program goes on. A signal in `termination` ends
/// the wait at once and stays there for the program's loop to take: a program that is to end need not be ready.
///
/// # Errors
/// When there is a service manager and it cannot be notified.
pub fn ready(termination: &SignalFd) -> io::Result<()> {
    prepare();
    let mut socket = SOCKET.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(socket) = socket.as_mut().and_then(Option::take) else {
        return Ok(());
    };
    match send_within(&socket, b"READY=1\n", PATIENCE, termination) {
        Err(Errno::INTR) => {}
        Err(Errno::AGAIN) => crate::warn(
            "the service manager was not notified of readiness: nobody reads from the socket of NOTIFY_SOCKET",
        ),
        other => other?,
    }
    Ok(())
}

/// Sends `message`, waiting for room for no longer than `patience`. Fails with EAGAIN if there is none by then, and
/// with EINTR if a signal in `termination` comes first.
fn send_within(
    socket: &OwnedFd,
    message: &[u8],
    patience: Duration,
    termination: &SignalFd,
) -> rustix::io::Result<()> {
    let start = Instant::now();
    loop {
        let left = patience.saturating_sub(start.elapsed());
        match send(socket, message, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            Err(Errno::AGAIN) if !left.is_zero() => {}
            other => return other.map(drop),
        }
        let left = Timespec::try_from(left).unwrap_or_default();
        let mut fds = [
            PollFd::new(socket, PollFlags::OUT),
            PollFd::new(termination, PollFlags::IN),
        ];
        match poll(&mut fds, Some(&left)) {
            Ok(_) if !fds[1].revents().is_empty() => return Err(Errno::INTR),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

fn open(path: OsString) -> io::Result<OwnedFd> {
    let address = match path.as_bytes() {
        [b'@', name @ ..] => SocketAddrUnix::new_abstract_name(name)?,
        path => SocketAddrUnix::new(path)?,
    };
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    connect(&socket, &address)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signals::block;
    use rustix::io::read;
    use std::os::unix::net::UnixDatagram;

    #[test]
    fn a_service_manager_that_listens_is_reached() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();

        let socket = open(path.into()).unwrap();
        send(&socket, b"READY=1\n", SendFlags::NOSIGNAL).unwrap();

        let mut message = [0; 16];
        let length = read(&manager, &mut message).unwrap();
        assert_eq!(&message[..length], b"READY=1\n");
    }
    #[test]
    fn a_service_manager_that_reads_nothing_is_waited_for_only_so_long() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let socket = open(path.into()).unwrap();
        let signals = block(&[libc::SIGUSR1]).unwrap();
        let now = Duration::ZERO;
        while send_within(&socket, b"x", now, &signals).is_ok() {}

        let start = Instant::now();
        let patience = Duration::from_millis(200);
        let sent = send_within(&socket, b"READY=1\n", patience, &signals);
        assert_eq!(sent, Err(Errno::AGAIN));
        assert!(start.elapsed() >= patience);

        // A signal ends the wait, and is still there for the program's loop.
        // SAFETY: raising a signal that this thread has blocked only marks it pending.
        unsafe { libc::raise(libc::SIGUSR1) };
        let start = Instant::now();
        let hour = Duration::from_secs(3600);
        let sent = send_within(&socket, b"READY=1\n", hour, &signals);
        assert_eq!(sent, Err(Errno::INTR));
        assert!(start.elapsed() < hour);
        assert_eq!(signals.take().unwrap(), Some(libc::SIGUSR1));

        // The manager reads, and there is room again.
        read(&manager, &mut [0; 16]).unwrap();
        let sent = send_within(&socket, b"READY=1\n", patience, &signals);
        assert_eq!(sent, Ok(()));
    }
}
