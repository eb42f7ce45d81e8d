//! The crate's error type.

use std::io;
use std::path::Path;

use crate::{Refusal, RefusalKind};

/// The kind of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Nothing listens on the socket.
    NotRunning,
    /// The caller may not use the socket.
    Permission,
    /// The helper has refused the request.
    Refused(RefusalKind),
    /// The helper has closed the connection before its reply: it has just ended.
    Closed,
    /// The peer does not follow this protocol.
    Protocol,
    /// Another system call failed.
    Io,
}

/// An error of a connection to the helper.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct Error {
    kind: ErrorKind,
    what: String,
    source: Option<io::Error>,
}

impl Error {
    /// The kind of this error.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    pub(crate) fn protocol(what: String) -> Self {
        Error {
            kind: ErrorKind::Protocol,
            what,
            source: None,
        }
    }

    pub(crate) fn closed() -> Self {
        Error {
            kind: ErrorKind::Closed,
            what: "bulkhead-net-helper closed the connection".into(),
            source: None,
        }
    }

    pub(crate) fn refused(refusal: Refusal) -> Self {
        Error {
            kind: ErrorKind::Refused(refusal.kind),
            what: refusal.message,
            source: None,
        }
    }

    pub(crate) fn io(what: &str, errno: rustix::io::Errno) -> Self {
        Error {
            kind: ErrorKind::Io,
            what: what.to_owned(),
            source: Some(errno.into()),
        }
    }

    pub(crate) fn connect(path: &Path, errno: rustix::io::Errno) -> Self {
        use rustix::io::Errno;
        let path = path.display();
        let (kind, what, source) = match errno {
            Errno::NOENT | Errno::CONNREFUSED | Errno::NOTDIR => {
                let what = format!("bulkhead-net-helper is not running: nothing listens on {path}");
                (ErrorKind::NotRunning, what, None)
            }
            Errno::ACCESS | Errno::PERM => {
                let what = format!(
                    "{path}: permission denied: you must be root or in the group of this socket"
                );
                (ErrorKind::Permission, what, None)
            }
            Errno::PROTOTYPE => (
                ErrorKind::Protocol,
                format!("{path} is the socket of another program, not of bulkhead-net-helper"),
                None,
            ),
            Errno::NAMETOOLONG => (
                ErrorKind::Io,
                format!("{path}: a socket's path can have at most 107 bytes"),
                None,
            ),
            errno => (
                ErrorKind::Io,
                format!("cannot connect to {path}"),
                Some(errno.into()),
            ),
        };
        Error { kind, what, source }
    }
}
