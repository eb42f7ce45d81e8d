//! Readiness: `READY=1` to the socket that `$NOTIFY_SOCKET` names (sd_notify(3)), for systemd and `bulkhead run` alike.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Mutex, PoisonError};

use rustix::net::{
    AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, send, socket_with,
};

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
/// # Errors
/// When there is a service manager and it cannot be notified.
pub fn ready() -> io::Result<()> {
    prepare();
    let mut socket = SOCKET.lock().unwrap_or_else(PoisonError::into_inner);
    match socket.as_mut().and_then(Option::take) {
        Some(socket) => send(&socket, b"READY=1\n", SendFlags::NOSIGNAL)
            .map(drop)
            .map_err(io::Error::from),
        None => Ok(()),
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
}
