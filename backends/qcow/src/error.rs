//! The one error type of this crate.

mod denied;

use std::fmt;
use std::io;
use std::path::Path;

pub use denied::{Denied, FileKind};

/// What went wrong, coarse enough to act upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The operating system refused a read, a write or another call.
    Io,
    /// The file is not of the declared format.
    NotThisFormat,
    /// The image breaks the specification in a way that makes it unreadable or unsafe to write.
    Corrupt,
    /// The image is valid and asks for something this library does not do (a feature bit, encryption, a protocol).
    Unsupported,
    /// The caller asked for something impossible: a bad size, an option out of range, a name that exists.
    InvalidInput,
    /// A name (snapshot, bitmap) that does not exist.
    NotFound,
    /// The offset or length lies outside the image.
    OutOfRange,
    /// The image was opened read-only, or has been marked corrupt.
    ReadOnly,
    /// Another process holds a lock that forbids this use.
    Locked,
    /// A backing chain that is too deep, loops, lacks a format, or was not opened.
    Backing,
    /// More is asked for than the format has room for: a disk, or snapshots.
    TooLarge,
    /// A file that may not be opened: its type or its folder forbids it.
    NotAllowed,
    /// Somebody else made the image's file shorter while it was in use, and the file is not as long again.
    Shortened,
    /// The L1 table of a snapshot is not where one can be. What else there is in the image may be sound.
    SnapshotL1(TableFault),
}

/// What is wrong with the place or size that an image gives for a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TableFault {
    /// It is larger than one of its kind may be.
    #[error("too large")]
    TooLarge,
    /// It begins where none can, or ends behind the end of the largest file.
    #[error("offset invalid")]
    Misplaced,
}

impl TableFault {
    /// As an error: the image is damaged.
    pub(crate) fn of(self, table: &str) -> Error {
        Error::corrupt(format!("{table} {self}"))
    }
}

/// An error: its kind, and one line that names what was wrong, the system's error included if there is one; that is not
/// reported a second time as a source.
#[derive(Debug, thiserror::Error)]
#[error("{message}{}", .cause.as_ref().map_or_else(String::new, |cause| format!(": {cause}")))]
pub struct Error {
    kind: ErrorKind,
    message: String,
    cause: Option<io::Error>,
    denied: Option<Denied>,
}

/// The result type of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            cause: None,
            denied: None,
        }
    }

    pub(crate) fn io(message: impl Into<String>, source: io::Error) -> Self {
        Self {
            kind: ErrorKind::Io,
            message: message.into(),
            cause: Some(source),
            denied: None,
        }
    }

    pub(crate) fn open(path: &Path, source: io::Error) -> Self {
        Self {
            denied: Some(Denied::Open(path.to_owned())),
            ..Self::io(format!("cannot open {}", path.display()), source)
        }
    }

    pub(crate) fn create(path: &Path, source: io::Error) -> Self {
        Self {
            denied: Some(Denied::Create(path.to_owned())),
            ..Self::io(format!("cannot create {}", path.display()), source)
        }
    }

    pub(crate) fn lock(path: &Path, lock: String) -> Self {
        let path = path.to_owned();
        let message = format!(
            "{}: cannot get {lock} lock: is another process using the image?",
            path.display()
        );
        Self {
            denied: Some(Denied::Lock(path, lock)),
            ..Self::new(ErrorKind::Locked, message)
        }
    }

    pub(crate) fn corrupt(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Corrupt, message)
    }

    pub(crate) fn unsupported(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, message)
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidInput, message)
    }

    pub(crate) fn too_large(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::TooLarge, message)
    }

    pub(crate) fn with_denied(self, denied: Denied) -> Self {
        Self {
            denied: Some(denied),
            ..self
        }
    }

    /// Puts `what: ` in front of the message, usually the name of the file.
    pub(crate) fn within(mut self, what: impl fmt::Display) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }

    /// What kind of error this is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The file that could not be had, and how, if that is what went wrong.
    pub fn denied(&self) -> Option<&Denied> {
        self.denied.as_ref()
    }

    /// The error number of the system call that failed, if one did.
    pub fn raw_os_error(&self) -> Option<i32> {
        self.cause.as_ref().and_then(io::Error::raw_os_error)
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match error.kind {
            ErrorKind::Io => match &error.cause {
                Some(cause) => cause.kind(),
                None => io::ErrorKind::Other,
            },
            ErrorKind::NotFound => io::ErrorKind::NotFound,
            ErrorKind::InvalidInput | ErrorKind::OutOfRange | ErrorKind::TooLarge => {
                io::ErrorKind::InvalidInput
            }
            ErrorKind::ReadOnly | ErrorKind::NotAllowed => io::ErrorKind::PermissionDenied,
            ErrorKind::Unsupported => io::ErrorKind::Unsupported,
            ErrorKind::NotThisFormat
            | ErrorKind::Corrupt
            | ErrorKind::Shortened
            | ErrorKind::SnapshotL1(_) => io::ErrorKind::InvalidData,
            ErrorKind::Locked | ErrorKind::Backing => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}
