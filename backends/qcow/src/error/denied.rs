//! Files that were refused, and why.

use std::fmt;
use std::path::{Path, PathBuf};

use super::{Error, ErrorKind};

/// A file that could not be had.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Denied {
    /// It could not be opened.
    Open(PathBuf),
    /// It could not be created.
    Create(PathBuf),
    /// Somebody else's lock is in the way of this one, named as QEMU names it.
    Lock(PathBuf, String),
    /// It is neither a regular file nor a block device.
    Type {
        /// The file.
        file: PathBuf,
        /// What it is.
        kind: FileKind,
        /// The image that names it, if one does.
        named_by: Option<PathBuf>,
    },
    /// It is not in the folders of [`AllowedFiles`](crate::AllowedFiles).
    Outside {
        /// The file.
        file: PathBuf,
        /// The image that names it.
        named_by: Option<PathBuf>,
        /// The folders.
        allowed: Vec<PathBuf>,
    },
}

/// The type of a file that is neither a regular file nor a block device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileKind {
    /// A directory.
    Directory,
    /// A FIFO, be it a pipe without a name.
    Fifo,
    /// A socket.
    Socket,
    /// A character device.
    CharacterDevice,
    /// A file in /proc or /sys.
    Kernel,
    /// Something else.
    Other,
}

impl fmt::Display for FileKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Directory => "a directory",
            Self::Fifo => "a FIFO",
            Self::Socket => "a socket",
            Self::CharacterDevice => "a character device",
            Self::Kernel => "a file of the kernel",
            Self::Other => "of another type",
        })
    }
}

/// What is wrong with a file that may not be opened, in words.
fn refusal(denied: &Denied) -> Option<String> {
    let by = |image: &Option<PathBuf>| match image {
        Some(image) => format!(", named by {},", image.display()),
        None => String::new(),
    };
    match denied {
        Denied::Type {
            file,
            kind,
            named_by,
        } => Some(format!(
            "{}{} is {kind}: only regular files and block devices are opened",
            file.display(),
            by(named_by)
        )),
        Denied::Outside {
            file,
            named_by,
            allowed,
        } => {
            let allowed: Vec<_> = allowed
                .iter()
                .map(|path| path.display().to_string())
                .collect();
            Some(format!(
                "{}{} is not in the folders from which images may name files: {}",
                file.display(),
                by(named_by),
                allowed.join(", ")
            ))
        }
        _ => None,
    }
}

impl Error {
    /// A file that is there and may not be opened.
    pub(crate) fn denied_by(denied: Denied) -> Self {
        let message = refusal(&denied).unwrap_or_default();
        Self::new(ErrorKind::NotAllowed, message).with_denied(denied)
    }

    /// Adds which image named the file, if the gate refused it.
    pub(crate) fn named_by(self, image: &Path) -> Self {
        let image = Some(image.to_owned());
        match self.denied().cloned() {
            Some(Denied::Type { file, kind, .. }) => Self::denied_by(Denied::Type {
                file,
                kind,
                named_by: image,
            }),
            Some(Denied::Outside { file, allowed, .. }) => Self::denied_by(Denied::Outside {
                file,
                named_by: image,
                allowed,
            }),
            _ => self,
        }
    }
}
