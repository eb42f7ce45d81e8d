//! The endpoint of the vhost-user socket: a listening socket made from a path or inherited, or an inherited connection.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use bulkhead_process::listen::SocketFile;
use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketType};

use crate::args::DaemonArgs;
use crate::error::Error;

/// How the frontend is reached.
#[derive(Debug)]
pub(crate) enum Endpoint {
    /// Frontends connect to this.
    Listener(Listener),
    /// The frontend is connected already.
    Connected(UnixStream),
}

impl Endpoint {
    pub(crate) fn open(args: &DaemonArgs) -> Result<Self, Error> {
        match (&args.socket_path, args.fd) {
            (Some(path), None) => Listener::bind(path).map(Self::Listener),
            (None, Some(number)) => Self::inherit(number),
            _ => Err(Error::Socket(
                "give either --socket-path or --fd".to_owned(),
                None,
            )),
        }
    }

    fn inherit(number: RawFd) -> Result<Self, Error> {
        let wrong = |why: &str| Error::Socket(format!("--fd {number} {why}"), None);
        let fd = inherited_fd(number)
            .map_err(|error| Error::Socket(format!("--fd {number}"), Some(error)))?;
        let is_stream = socket_domain(&fd) == Ok(AddressFamily::UNIX)
            && socket_type(&fd) == Ok(SocketType::STREAM);
        if !is_stream {
            return Err(wrong("is not a Unix stream socket"));
        }
        let listens = socket_acceptconn(&fd).map_err(Error::system("getsockopt"))?;
        Ok(if listens {
            Self::Listener(Listener {
                socket: UnixListener::from(fd),
                file: None,
            })
        } else {
            Self::Connected(UnixStream::from(fd))
        })
    }
}

/// A listening socket. It has a file if this process made one and has not left its removal to the broker.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) socket: UnixListener,
    pub(crate) file: Option<SocketFile>,
}

impl Listener {
    fn bind(path: &Path) -> Result<Self, Error> {
        let (socket, file) = bulkhead_process::listen::listen(path)?.into_parts();
        Ok(Self {
            socket: UnixListener::from(socket),
            file: Some(file),
        })
    }
}

/// Takes over a descriptor that the parent process opened for this one and named on the command line. The number stays
/// open; the descriptor returned is a duplicate that children do not inherit.
///
/// # Errors
/// When the number is not open.
pub fn inherited_fd(number: RawFd) -> io::Result<OwnedFd> {
    if number < 0 {
        return Err(rustix::io::Errno::BADF.into());
    }
    // SAFETY: the descriptor is borrowed for one fcntl(2), which fails with EBADF if it is not open. Nothing in this
    // process closes a descriptor it was started with. There is no safe way to name a descriptor by number.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_dupfd_cloexec(borrowed, 3).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn an_inherited_socket_is_taken_as_what_it_is() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let connected = Endpoint::inherit(ours.as_raw_fd()).unwrap();
        assert!(matches!(connected, Endpoint::Connected(_)));

        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("s")).unwrap();
        let listening = Endpoint::inherit(listener.as_raw_fd()).unwrap();
        assert!(matches!(listening, Endpoint::Listener(_)));

        let file = tempfile::tempfile().unwrap();
        assert!(Endpoint::inherit(file.as_raw_fd()).is_err());
        assert!(Endpoint::inherit(-1).is_err());
        assert!(Endpoint::inherit(9999).is_err());
    }
}
