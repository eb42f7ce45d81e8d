//! The crate's one error.

use std::io;

/// What kind of thing went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The name is not one an interface can have.
    Name,
    /// There is no such interface, or no `/dev/net/tun`.
    NotFound,
    /// The caller may not do this.
    Permission,
    /// Somebody else has the interface, or all of its queues.
    Busy,
    /// The interface exists but is not a TAP, or was made with other options.
    Mismatch,
    /// Anything else the kernel said.
    Io,
}

/// An operation on a TAP device failed. Its text names the interface.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct Error {
    kind: ErrorKind,
    what: String,
    source: Option<io::Error>,
}

impl Error {
    /// What kind of thing went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    pub(crate) fn name(what: String) -> Self {
        Error {
            kind: ErrorKind::Name,
            what,
            source: None,
        }
    }

    pub(crate) fn mismatch(what: String) -> Self {
        Error {
            kind: ErrorKind::Mismatch,
            what,
            source: None,
        }
    }

    pub(crate) fn io(what: impl Into<String>, errno: rustix::io::Errno) -> Self {
        use rustix::io::Errno;
        let kind = match errno {
            Errno::NOENT | Errno::NODEV | Errno::NXIO => ErrorKind::NotFound,
            Errno::PERM | Errno::ACCESS => ErrorKind::Permission,
            Errno::BUSY | Errno::EXIST | Errno::TOOBIG => ErrorKind::Busy,
            Errno::INVAL => ErrorKind::Mismatch,
            _ => ErrorKind::Io,
        };
        Error {
            kind,
            what: what.into(),
            source: Some(errno.into()),
        }
    }
}
