//! The socket that clients connect to.
//!
//! Who may ask is who may connect: root, and the group that the socket is given (mode 0660). The kernel checks it, for
//! every group that a caller is in. Who it was (`SO_PEERCRED`) then counts against that user's share.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, bail};
use bulkhead_process::broker::Broker;
use bulkhead_process::listen::{Listen, SocketFile};
use rustix::io::{Errno, fcntl_dupfd_cloexec, ioctl_fionbio};
use rustix::net::sockopt::{socket_peercred, socket_type};
use rustix::net::{
    AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType, accept_with, connect,
    shutdown, socket_with,
};
use rustix::stdio::dup2_stdin;

use crate::connection;

/// A listening socket. The file that it is reached by is its broker's to remove, once the helper is confined.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: OwnedFd,
    file: Option<SocketFile>,
}

impl Listener {
    /// Listens on a path, which must be free or left by a program that has died.
    pub(crate) fn bind(path: &Path, group: Option<u32>) -> Result<Self> {
        let listen = Listen::default().seqpacket().mode(0o660).group(group);
        let (socket, file) = listen.at(path)?.into_parts();
        connection::guard(&socket)
            .with_context(|| format!("cannot listen on {}", path.display()))?;
        Ok(Listener {
            socket,
            file: Some(file),
        })
    }

    /// Leaves the removal of the file to the broker.
    pub(crate) fn leave_file_to(&mut self, broker: &mut Broker) -> std::io::Result<()> {
        match self.file.take() {
            Some(file) => broker.remove_at_end(file),
            None => Ok(()),
        }
    }

    /// Takes no more clients. Those that wait are left to the end of the process: to close what they have sent can take
    /// as long as they like in any other case.
    pub(crate) fn end(self) {
        let _ = shutdown(&self.socket, Shutdown::Read);
        std::mem::forget(self.socket);
    }

    /// The next connection and its user.
    pub(crate) fn accept(&self) -> std::io::Result<(OwnedFd, u32)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let connection = accept_with(&self.socket, flags)?;
        // Before Linux 6.16 it is marked as the listener is, since then as that was when the client connected.
        connection::guard(&connection)?;
        let user = socket_peercred(&connection)?.uid.as_raw();
        Ok((connection, user))
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The connection that standard input is, which is nothing after that.
pub(crate) fn connection_on_stdin() -> Result<OwnedFd> {
    let what = "--client-on-stdin: standard input";
    let stdin = std::io::stdin();
    let kind = socket_type(&stdin).with_context(|| format!("{what} is no socket"))?;
    if kind != SocketType::SEQPACKET {
        bail!("{what} is another kind of socket than the helper's");
    }
    let connection = fcntl_dupfd_cloexec(&stdin, 3).context(what)?;
    ioctl_fionbio(&connection, true).context(what)?;
    connection::guard(&connection).context(what)?;
    let nothing = fs::File::open("/dev/null").context("cannot open /dev/null")?;
    dup2_stdin(&nothing).context(what)?;
    Ok(connection)
}

/// Whether somebody listens on the path.
pub(crate) fn is_served(path: &Path) -> bool {
    let probe = |address| -> rustix::io::Result<()> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        connect(&socket, &address)
    };
    match SocketAddrUnix::new(path).and_then(probe) {
        // One that has too many visitors at the moment listens, too.
        Ok(()) | Err(Errno::AGAIN) => true,
        Err(_) => false,
    }
}
