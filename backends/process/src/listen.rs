//! Listening Unix sockets.
//!
//! If a killed process has left a socket at the path, it is replaced. A socket at which a process listens is left
//! alone, and so is any other file. The file has the mode that the caller wants from the start, whatever the umask is.
//! Programs that start at the same time lock the folder: one listens, the others fail because the path is in use.

mod files;
mod passed;
mod pause;

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, FileType, FlockOperation, Gid, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

pub use files::refuse_files;
pub use passed::passed;
pub use pause::AcceptPause;

/// The longest path of a Unix socket, without its terminator (unix(7)).
pub const LONGEST_PATH: usize = 107;

/// How many connections can wait to be accepted.
pub const BACKLOG: i32 = 128;

/// How long to wait for the lock of the folder. Another program has it for microseconds, unless it is stopped.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why a program cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The path does not fit in a socket's address.
    #[error("socket path {} has {} bytes, {LONGEST_PATH} are possible", .0.display(), .0.as_os_str().len())]
    TooLong(PathBuf),
    /// There is a file that is no socket.
    #[error("{} exists and is not a socket", .0.display())]
    NotASocket(PathBuf),
    /// Another process listens.
    #[error("{} is in use by another process", .0.display())]
    InUse(PathBuf),
    /// A system call failed.
    #[error("cannot {0} {path}", path = .1.display())]
    System(&'static str, PathBuf, #[source] io::Error),
}

/// The type of the socket, and who may connect.
#[derive(Clone, Copy, Debug)]
pub struct Listen {
    kind: SocketType,
    mode: u32,
    group: Option<u32>,
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            kind: SocketType::STREAM,
            mode: 0o600,
            group: None,
        }
    }
}

/// Listens at `path` with a stream socket to which only its owner can connect.
///
/// # Errors
/// See [`ListenError`].
pub fn listen(path: &Path) -> Result<Listener, ListenError> {
    Listen::default().at(path)
}

/// A listening socket, which does not block, and its file, which is removed with it.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    file: SocketFile,
}

impl Listener {
    /// Returns the socket and its file, which is removed when it is dropped.
    #[must_use]
    pub fn into_parts(self) -> (OwnedFd, SocketFile) {
        (self.socket, self.file)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Listen {
    /// Has the socket keep the bounds of messages (`SOCK_SEQPACKET`).
    #[must_use]
    pub fn seqpacket(mut self) -> Self {
        self.kind = SocketType::SEQPACKET;
        self
    }

    /// Sets the permission bits of the file.
    #[must_use]
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = mode & 0o777;
        self
    }

    /// Sets the group of the file.
    #[must_use]
    pub fn group(mut self, group: Option<u32>) -> Self {
        self.group = group;
        self
    }

    /// Listens at `path`.
    ///
    /// # Errors
    /// See [`ListenError`].
    pub fn at(&self, path: &Path) -> Result<Listener, ListenError> {
        let failed = |error: Errno| ListenError::System("listen on", path.to_owned(), error.into());
        if path.as_os_str().len() > LONGEST_PATH {
            return Err(ListenError::TooLong(path.to_owned()));
        }
        let address = SocketAddrUnix::new(path).map_err(failed)?;
        // A path that ends in `..` or is empty names no file.
        let name = path.file_name().ok_or(Errno::INVAL).map_err(failed)?;
        let folder = Folder::open(path).map_err(failed)?;
        let locked = folder.lock().map_err(failed)?;
        self.remove_stale(path, &folder, name, &address)?;
        let socket = self.socket().map_err(failed)?;
        // The file gets the mode of the socket (unix(7)) without the bits of the umask, which belongs to the whole
        // process and is not changed.
        rustix::fs::fchmod(&socket, Mode::from_raw_mode(self.mode & 0o700)).map_err(failed)?;
        rustix::net::bind(&socket, &address).map_err(failed)?;
        let status = folder.status(name).map_err(failed)?;
        let file = SocketFile {
            path: path.to_owned(),
            identity: Some((status.st_dev, status.st_ino)),
        };
        // Nobody can connect before listen(2), and by then owner, group and mode are set.
        let opened = self
            .give(path)
            .and_then(|()| rustix::net::listen(&socket, BACKLOG));
        if let Err(error) = opened {
            drop(locked);
            return Err(failed(error));
        }
        Ok(Listener { socket, file })
    }

    fn give(&self, path: &Path) -> Result<(), Errno> {
        if let Some(group) = self.group {
            let group = Some(Gid::from_raw(group));
            rustix::fs::chownat(CWD, path, None, group, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        rustix::fs::chmod(path, Mode::from_raw_mode(self.mode))
    }

    fn socket(&self) -> Result<OwnedFd, Errno> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        rustix::net::socket_with(AddressFamily::UNIX, self.kind, flags, None)
    }

    /// Removes a socket at which nobody listens. Fails for anything else, and leaves it alone.
    fn remove_stale(
        &self,
        path: &Path,
        folder: &Folder,
        name: &OsStr,
        address: &SocketAddrUnix,
    ) -> Result<(), ListenError> {
        let failed = |what, error: Errno| ListenError::System(what, path.to_owned(), error.into());
        match folder.status(name) {
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(failed("look at", error)),
            Ok(status) if FileType::from_raw_mode(status.st_mode) != FileType::Socket => {
                return Err(ListenError::NotASocket(path.to_owned()));
            }
            Ok(_) => {}
        }
        match self.probe(address) {
            Err(Errno::CONNREFUSED) => {
                let removed = rustix::fs::unlinkat(&folder.fd, name, AtFlags::empty());
                removed.map_err(|error| failed("remove the stale socket", error))
            }
            Err(Errno::NOENT) => Ok(()),
            Ok(()) | Err(Errno::AGAIN | Errno::PROTOTYPE) => {
                Err(ListenError::InUse(path.to_owned()))
            }
            Err(error) => Err(failed("find out who listens on", error)),
        }
    }

    /// Whether a process listens at `path`, with this kind of socket or another.
    #[must_use]
    pub fn is_in_use(&self, path: &Path) -> bool {
        matches!(
            SocketAddrUnix::new(path).and_then(|address| self.probe(&address)),
            Ok(()) | Err(Errno::AGAIN | Errno::PROTOTYPE)
        )
    }

    /// Whether there is a socket at `path` at which nobody listens, since the program that made it could not remove it.
    #[must_use]
    pub fn is_stale(&self, path: &Path) -> bool {
        let is_stale = || -> Result<bool, Errno> {
            let folder = Folder::open(path)?;
            // One that another program is making now has no listener yet.
            let _locked = folder.lock()?;
            let status = folder.status(path.file_name().ok_or(Errno::INVAL)?)?;
            let is_socket = FileType::from_raw_mode(status.st_mode) == FileType::Socket;
            let probed = self.probe(&SocketAddrUnix::new(path)?);
            Ok(is_socket && probed == Err(Errno::CONNREFUSED))
        };
        is_stale().unwrap_or(false)
    }

    /// Connects and closes the connection. It never blocks: the error is EAGAIN when a process listens and its backlog
    /// is full.
    fn probe(&self, address: &SocketAddrUnix) -> Result<(), Errno> {
        rustix::net::connect(self.socket()?, address)
    }
}

/// In place of a device and inode: any regular file that is empty.
pub(crate) const EMPTY: (u64, u64) = (0, 0);

/// The folder that a socket is in.
#[derive(Debug)]
pub(crate) struct Folder {
    fd: OwnedFd,
}

impl Folder {
    /// Opens the folder of a path.
    pub(crate) fn open(path: &Path) -> Result<Self, Errno> {
        let folder = folder_of(path);
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = match rustix::fs::open(folder, flags | OFlags::RDONLY, Mode::empty()) {
            // A folder that can be written and not read cannot be locked either.
            Err(Errno::ACCESS) => rustix::fs::open(folder, flags | OFlags::PATH, Mode::empty()),
            other => other,
        };
        Ok(Self { fd: opened? })
    }

    fn status(&self, name: &OsStr) -> Result<Stat, Errno> {
        rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Removes the file or the empty folder of this path, unless another has taken its place.
    pub(crate) fn remove(&self, path: &Path, identity: (u64, u64)) -> Result<(), Errno> {
        let name = path.file_name().ok_or(Errno::INVAL)?;
        let _locked = self.lock();
        let now = self.status(name)?;
        let kind = FileType::from_raw_mode(now.st_mode);
        let is_empty = kind.is_file() && now.st_size == 0;
        let flags = match kind.is_dir() {
            true => AtFlags::REMOVEDIR,
            false => AtFlags::empty(),
        };
        match (now.st_dev, now.st_ino) == identity || (identity == EMPTY && is_empty) {
            true => rustix::fs::unlinkat(&self.fd, name, flags),
            false => Ok(()),
        }
    }

    /// Locks the folder, so that no other program replaces sockets here until the result is dropped.
    fn lock(&self) -> Result<FolderLock<'_>, Errno> {
        let start = Instant::now();
        loop {
            match rustix::fs::flock(&self.fd, FlockOperation::NonBlockingLockExclusive) {
                Err(Errno::WOULDBLOCK) if start.elapsed() < PATIENCE => {
                    sleep(Duration::from_millis(2));
                }
                Err(Errno::INTR) => {}
                // Some file systems have no locks, and some descriptors cannot be locked.
                Ok(()) | Err(Errno::NOLCK | Errno::OPNOTSUPP | Errno::NOSYS | Errno::BADF) => {
                    return Ok(FolderLock(self));
                }
                Err(error) => return Err(error),
            }
        }
    }
}

struct FolderLock<'f>(&'f Folder);

impl Drop for FolderLock<'_> {
    fn drop(&mut self) {
        // The lock ends with the descriptor in any case.
        let _ = rustix::fs::flock(&self.0.fd, FlockOperation::Unlock);
    }
}

/// The folder of a path, as a path that can be opened.
pub(crate) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// The file of a socket. It is removed when this is dropped, unless another process has put its own in its place. A
/// process that is confined by then cannot do that: it leaves it to its [broker](crate::broker).
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode; `None` if another process has to remove the file.
    identity: Option<(u64, u64)>,
}

impl SocketFile {
    /// The path of the file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves the removal to the caller. Returns the path, and the file's device and inode.
    pub(crate) fn give_away(mut self) -> (PathBuf, (u64, u64)) {
        let identity = self.identity.take().unwrap_or_default();
        (std::mem::take(&mut self.path), identity)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let Some(identity) = self.identity else {
            return;
        };
        if let Ok(folder) = Folder::open(&self.path) {
            // Another process may have removed the file already.
            let _ = folder.remove(&self.path, identity);
            return;
        }
        // A confined process may be allowed to remove the file and not to open the folder.
        let is_ours = std::fs::symlink_metadata(&self.path)
            .is_ok_and(|now| (now.dev(), now.ino()) == identity);
        if is_ours {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_socket_is_stale_once_its_listener_is_gone_and_no_other_file_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let seqpacket = Listen::default().seqpacket();
        assert!(!seqpacket.is_stale(&path), "there is none");
        let (socket, mut file) = seqpacket.at(&path).unwrap().into_parts();
        for kind in [seqpacket, Listen::default()] {
            assert!(!kind.is_stale(&path), "somebody listens");
        }
        drop(socket);
        assert!(seqpacket.is_stale(&path));
        file.identity = None;
        drop(file);
        fs::remove_file(&path).unwrap();
        fs::write(&path, "").unwrap();
        assert!(!seqpacket.is_stale(&path), "it is no socket");
    }

    #[test]
    fn the_mode_is_what_was_said_and_the_file_goes_with_its_listener() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");

        let listener = listen(&path).unwrap();
        assert_eq!(mode(&path), 0o600);
        assert!(UnixStream::connect(&path).is_ok());
        drop(listener);
        assert!(!path.exists());

        let own = fs::metadata(folder.path()).unwrap().gid();
        let wide = Listen::default().mode(0o660).group(Some(own)).seqpacket();
        let _listener = wide.at(&path).unwrap();
        assert_eq!(mode(&path), 0o660);
    }

    #[test]
    fn a_stale_socket_is_replaced_and_one_in_use_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());

        let _living = listen(&path).unwrap();
        let error = listen(&path).unwrap_err();
        assert!(matches!(error, ListenError::InUse(_)), "{error}");
        assert!(error.to_string().contains("in use by another process"));
        // One of another kind is in use, too.
        let error = Listen::default().seqpacket().at(&path).unwrap_err();
        assert!(matches!(error, ListenError::InUse(_)), "{error}");
        let datagrams = folder.path().join("d.sock");
        let _bound = UnixDatagram::bind(&datagrams).unwrap();
        let error = listen(&datagrams).unwrap_err();
        assert!(matches!(error, ListenError::InUse(_)), "{error}");
    }

    #[test]
    fn one_that_listens_and_never_accepts_is_in_use_and_keeps_nobody_waiting() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        let listener = listen(&path).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let _waiting = UnixStream::connect(&path).unwrap();

        let error = listen(&path).unwrap_err();

        assert!(matches!(error, ListenError::InUse(_)), "{error}");
    }

    #[test]
    fn of_many_that_start_at_once_exactly_one_listens() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        for _ in 0..20 {
            drop(UnixListener::bind(&path).unwrap());
            let all = std::sync::Barrier::new(8);
            let started: Vec<_> = std::thread::scope(|scope| {
                let start = || {
                    all.wait();
                    listen(&path)
                };
                let threads: Vec<_> = (0..8).map(|_| scope.spawn(start)).collect();
                threads.into_iter().map(|t| t.join().unwrap()).collect()
            });
            let listening: Vec<_> = started.iter().filter_map(|one| one.as_ref().ok()).collect();
            assert_eq!(listening.len(), 1, "{started:?}");
            let client = UnixStream::connect(&path).unwrap();
            let accepted = rustix::net::accept(listening[0]);
            assert!(accepted.is_ok(), "it is the one that is reached");
            drop(client);
        }
    }

    #[test]
    fn a_successors_socket_is_not_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        let first = listen(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let _second = listen(&path).unwrap();

        drop(first);

        assert!(UnixStream::connect(&path).is_ok());
    }

    #[test]
    fn what_cannot_be_a_socket_is_named_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "precious").unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(folder.path().join("elsewhere"), &link).unwrap();
        for path in [&file, &link] {
            let error = listen(path).unwrap_err();
            assert!(error.to_string().contains("is not a socket"), "{error}");
        }
        assert_eq!(fs::read(&file).unwrap(), b"precious");

        let long = folder.path().join("x".repeat(120));
        let error = listen(&long).unwrap_err();
        assert!(error.to_string().contains("107"), "{error}");

        let missing = folder.path().join("no/such/folder");
        let error = listen(&missing).unwrap_err();
        assert!(error.to_string().contains("no/such/folder"), "{error}");
    }
}
