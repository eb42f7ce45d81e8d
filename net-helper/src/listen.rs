//! The socket that clients connect to.
//!
//! Its mode is 0660, so only root and the group of the socket can connect; the kernel checks that, for all groups of a
//! process. The user of a connection (`SO_PEERCRED`) is the one whose limit it counts towards.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, bail};
use bulkhead_process::broker::Broker;
use bulkhead_process::listen::{Listen, SocketFile, passed};
use rustix::io::{fcntl_dupfd_cloexec, ioctl_fionbio};
use rustix::net::sockopt::{socket_peercred, socket_type};
use rustix::net::{Shutdown, SocketFlags, SocketType, accept_with, shutdown};
use rustix::stdio::dup2_stdin;

use crate::connection::set_options;

/// The listening socket, and its file until the broker takes over the removal of that.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: OwnedFd,
    file: Option<SocketFile>,
    /// Whether it is a service manager's, which goes on listening.
    is_passed: bool,
}

impl Listener {
    /// Takes the socket that a service manager has passed, or listens at a path. A socket file that nobody listens on
    /// any more is replaced.
    pub(crate) fn bind(path: &Path, group: Option<u32>) -> Result<Self> {
        if let Some(socket) = passed(SocketType::SEQPACKET)? {
            set_options(&socket).context("cannot listen on the socket that was passed")?;
            return Ok(Listener {
                socket,
                file: None,
                is_passed: true,
            });
        }
        let listen = Listen::default().seqpacket().mode(0o660).group(group);
        let (socket, file) = listen.at(path)?.into_parts();
        set_options(&socket).with_context(|| format!("cannot listen on {}", path.display()))?;
        Ok(Listener {
            socket,
            file: Some(file),
            is_passed: false,
        })
    }

    /// Has the broker remove the file at the end.
    pub(crate) fn hand_file_to(&mut self, broker: &mut Broker) -> std::io::Result<()> {
        match self.file.take() {
            Some(file) => broker.remove_at_end(file),
            None => Ok(()),
        }
    }

    /// Accepts no more clients. Connections that wait to be accepted are closed when the process ends: closing a socket
    /// with files in its messages can block here, and does not block there.
    pub(crate) fn end(self) {
        if !self.is_passed {
            let _ = shutdown(&self.socket, Shutdown::Read);
        }
        std::mem::forget(self.socket);
    }

    /// Accepts the next connection, and returns it with its user.
    pub(crate) fn accept(&self) -> std::io::Result<(OwnedFd, u32)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let connection = accept_with(&self.socket, flags)?;
        // Before Linux 6.16 a connection has the options that the listener has now; since then, those of the listener
        // when the client connected.
        set_options(&connection)?;
        let user = socket_peercred(&connection)?.uid.as_raw();
        Ok((connection, user))
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Takes the connection that is standard input, and replaces standard input by /dev/null.
pub(crate) fn connection_on_stdin() -> Result<OwnedFd> {
    let what = "--client-on-stdin: standard input";
    let stdin = std::io::stdin();
    let kind = socket_type(&stdin).with_context(|| format!("{what} is no socket"))?;
    if kind != SocketType::SEQPACKET {
        bail!("{what} is another kind of socket than the helper's");
    }
    let connection = fcntl_dupfd_cloexec(&stdin, 3).context(what)?;
    ioctl_fionbio(&connection, true).context(what)?;
    set_options(&connection).context(what)?;
    let null = fs::File::open("/dev/null").context("cannot open /dev/null")?;
    dup2_stdin(&null).context(what)?;
    Ok(connection)
}
