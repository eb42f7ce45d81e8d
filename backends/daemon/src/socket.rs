//! The socket at which the frontend is met: made from a path, or inherited.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketType};

use crate::args::DaemonArgs;
use crate::error::Error;

/// The longest path of a Unix socket, without its terminator (unix(7)).
const LONGEST_PATH: usize = 107;

/// Where the frontend comes from.
#[derive(Debug)]
pub(crate) enum Meeting {
    /// Frontends connect to this.
    Listener(Listener),
    /// The frontend is at the other end already.
    Connected(UnixStream),
}

impl Meeting {
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

/// A listening socket; its file, if it made one, goes with it.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) socket: UnixListener,
    file: Option<SocketFile>,
}

impl Listener {
    fn bind(path: &Path) -> Result<Self, Error> {
        let failed = |what: &str, error: io::Error| {
            Error::Socket(format!("{what} {}", path.display()), Some(error))
        };
        let length = path.as_os_str().len();
        if length > LONGEST_PATH {
            return Err(Error::Socket(
                format!(
                    "socket path {} has {length} bytes, {LONGEST_PATH} are possible",
                    path.display()
                ),
                None,
            ));
        }
        remove_stale(path)?;
        // Mode 0600 from the first moment, not a moment later.
        let before = rustix::process::umask(Mode::RWXG | Mode::RWXO | Mode::XUSR);
        let bound = UnixListener::bind(path);
        rustix::process::umask(before);
        let socket = bound.map_err(|error| failed("cannot listen on", error))?;
        let metadata =
            fs::symlink_metadata(path).map_err(|error| failed("cannot listen on", error))?;
        Ok(Self {
            socket,
            file: Some(SocketFile {
                path: path.to_owned(),
                identity: (metadata.dev(), metadata.ino()),
            }),
        })
    }

    /// The folder in which the socket file will be removed at the end.
    pub(crate) fn folder(&self) -> Option<&Path> {
        let folder = self.file.as_ref()?.path.parent()?;
        Some(if folder.as_os_str().is_empty() {
            Path::new(".")
        } else {
            folder
        })
    }
}

/// The file of a socket, removed when dropped, unless another process has put its own in its place.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .map_or(true, |now| (now.dev(), now.ino()) == self.identity);
        if ours {
            // Somebody may have been faster.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes a socket that a process which is no more has left. Anything else is left alone, and is an error.
fn remove_stale(path: &Path) -> Result<(), Error> {
    let show = path.display();
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        // Missing folders show when the socket is bound.
        Err(_) => return Ok(()),
    };
    if !metadata.file_type().is_socket() {
        return Err(Error::Socket(
            format!("{show} exists and is not a socket"),
            None,
        ));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path)
            .map_err(|error| {
                Error::Socket(
                    format!("cannot remove the stale socket {show}"),
                    Some(error),
                )
            }),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::Socket(
            format!("cannot tell whether {show} is in use"),
            Some(error),
        )),
        Ok(_) => Err(Error::Socket(
            format!("{show} is in use by another process"),
            None,
        )),
    }
}

/// Takes over a descriptor that the parent process opened for this one and named on the command line. The number stays open; what is
/// given is a duplicate that is not inherited further.
///
/// # Errors
/// When the number is not open.
pub fn inherited_fd(number: RawFd) -> io::Result<OwnedFd> {
    if number < 0 {
        return Err(rustix::io::Errno::BADF.into());
    }
    // SAFETY: the descriptor is borrowed for one fcntl(2), which fails with EBADF if it is not open. Nothing in this process closes a
    // descriptor it was started with. There is no safe way to name a descriptor by number.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_dupfd_cloexec(borrowed, 3).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::PermissionsExt;

    fn message(error: &Error) -> String {
        error.to_string()
    }

    #[test]
    fn the_socket_is_the_owners_alone_and_goes_with_its_process() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");

        let listener = Listener::bind(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(listener.folder(), Some(folder.path()));

        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_living_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());

        let living = Listener::bind(&path).unwrap();
        let error = Listener::bind(&path).unwrap_err();
        assert!(message(&error).contains("in use"), "{error}");
        drop(living);
    }

    #[test]
    fn a_successors_socket_is_not_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        let first = Listener::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let _second = Listener::bind(&path).unwrap();

        drop(first);

        assert!(UnixStream::connect(&path).is_ok());
    }

    #[test]
    fn what_cannot_be_a_socket_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "precious").unwrap();
        let error = Listener::bind(&file).unwrap_err();
        assert!(message(&error).contains("not a socket"), "{error}");
        assert_eq!(fs::read(&file).unwrap(), b"precious");

        let long = folder.path().join("x".repeat(120));
        let error = Listener::bind(&long).unwrap_err();
        assert!(message(&error).contains("107"), "{error}");

        let missing = folder.path().join("no/such/folder");
        let error = Listener::bind(&missing).unwrap_err();
        assert!(message(&error).contains("no/such/folder"), "{error}");
    }

    #[test]
    fn an_inherited_socket_is_taken_as_what_it_is() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let connected = Meeting::inherit(ours.as_raw_fd()).unwrap();
        assert!(matches!(connected, Meeting::Connected(_)));

        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("s")).unwrap();
        let listening = Meeting::inherit(listener.as_raw_fd()).unwrap();
        assert!(matches!(listening, Meeting::Listener(_)));

        let file = tempfile::tempfile().unwrap();
        assert!(Meeting::inherit(file.as_raw_fd()).is_err());
        assert!(Meeting::inherit(-1).is_err());
        assert!(Meeting::inherit(9999).is_err());
    }
}
