//! The socket that clients connect to.
//!
//! Who may ask is who may connect: root, and the group that the socket is given (mode 0660). The kernel checks it, for every group that a
//! caller is in. Who it was (`SO_PEERCRED`) then counts against that user's share.

use std::fs;
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::Mode;
use rustix::io::{Errno, fcntl_dupfd_cloexec, ioctl_fionbio};
use rustix::net::sockopt::{socket_peercred, socket_type};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen,
    socket_with,
};
use rustix::stdio::dup2_stdin;

/// A listening socket, and the file that it is reached by.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: OwnedFd,
    path: PathBuf,
}

impl Listener {
    /// Listens on a path, which must be free or left by a program that has died.
    pub(crate) fn bind(path: &Path, group: Option<u32>) -> Result<Self> {
        let shown = path.display();
        let address = SocketAddrUnix::new(path).map_err(|e| match e {
            Errno::NAMETOOLONG => {
                anyhow::anyhow!("{shown}: a socket's path can have at most 107 bytes")
            }
            e => anyhow::Error::from(e).context(format!("cannot listen on {shown}")),
        })?;
        remove_stale(path, &address)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .context("cannot open a socket")?;
        // Nobody connects before the group and the mode are right.
        let usual = rustix::process::umask(Mode::from_raw_mode(0o777));
        let bound = bind(&socket, &address);
        rustix::process::umask(usual);
        bound.with_context(|| format!("cannot listen on {shown}"))?;
        let listener = Listener {
            socket,
            path: path.to_owned(),
        };
        std::os::unix::fs::chown(path, None, group)
            .with_context(|| format!("cannot give {shown} its group"))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o660))
            .with_context(|| format!("cannot set the mode of {shown}"))?;
        listen(&listener.socket, 64).with_context(|| format!("cannot listen on {shown}"))?;
        Ok(listener)
    }

    /// The next connection and its user, if one is waiting.
    pub(crate) fn accept(&self) -> Option<(OwnedFd, u32)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let connection = accept_with(&self.socket, flags).ok()?;
        let user = socket_peercred(&connection).ok()?.uid.as_raw();
        Some((connection, user))
    }

    /// Stops listening and removes the file.
    pub(crate) fn close(self) -> Result<()> {
        match fs::remove_file(&self.path) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                Err(e).with_context(|| format!("cannot remove {}", self.path.display()))
            }
            _ => Ok(()),
        }
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

fn remove_stale(path: &Path, address: &SocketAddrUnix) -> Result<()> {
    let shown = path.display();
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e).with_context(|| format!("cannot look at {shown}")),
        Ok(file) if !file.file_type().is_socket() => bail!("{shown} exists and is not a socket"),
        Ok(_) => {}
    }
    let probe = socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    match connect(&probe, address) {
        Err(Errno::CONNREFUSED) => {
            fs::remove_file(path).with_context(|| format!("cannot remove {shown}"))
        }
        _ => bail!("something listens on {shown} already: is another bulkhead-net-helper running?"),
    }
}
