//! A broker: a small confined child process that does three things for a confined program, which may not do them
//! itself: connect to sockets, remove files, and hold descriptors open. The program names the sockets and files before
//! the broker is sealed.
//!
//! The program itself then needs no `socket`, `connect`, `open` or `unlink`, and no path: an intruder in it reaches its
//! own peers, but no other guest's, nor the helper, nor the session bus. The broker connects by path each time, so a
//! peer that was started again, with a new socket file, is reached, too.
//!
//! ```no_run
//! # use bulkhead_process::{broker::Broker, confine::Confinement, listen};
//! # use std::path::Path;
//! let (socket, file) = listen::listen(Path::new("api.sock"))?.into_parts();
//! let mut broker = Broker::start()?;           // before confinement, before threads
//! let disk = broker.peer(Path::new("vda.sock"))?;
//! broker.remove_at_end(file)?;
//! // Until the broker is sealed it also opens files: a program whose API names them is confined all the same.
//! let kernel = broker.open(Path::new("vmlinuz"))?;
//! // Before the first byte of a guest. What is not named by now stays out of reach.
//! broker.seal()?;
//! Confinement::new().enter()?;
//! let stream = broker.connect(disk)?;          // from any thread, again after each loss
//! broker.end();                                // an orderly end: the files are removed
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! If the program is killed, its files stay, as without a broker, and the broker ends with it. A request to the broker
//! is one small message of a fixed form, so that an intruder has little to attack.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg,
    sendmsg, socketpair,
};

use crate::listen::SocketFile;

mod child;

/// The most bytes of a request: its kind, and a path.
const LONGEST_REQUEST: usize = 1 + 4096;

/// How long to wait for a reply. The broker itself waits for nothing but the file system, which may hang.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long the end of the program waits for a broker. A program may have two.
const END: Duration = Duration::from_secs(3);

/// The kinds of request. The kind is the first byte; what follows it is said here.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
enum Kind {
    /// A path to connect to. The reply is its number.
    Peer = 1,
    /// A file: device, inode, path.
    Remove,
    /// A descriptor to hold, which comes with the message.
    Keep,
    /// A path of a file to open for reading.
    Open,
    /// Nothing. None of the above is accepted afterwards.
    Seal,
    /// The number of a peer. The reply is a connected stream.
    Connect,
    /// Nothing. Removes the files.
    RemoveNow,
    /// Nothing. Removes the files and ends.
    End,
    /// Nothing. Sets the checkpoint.
    Checkpoint,
    /// Nothing. Forgets what was named since the checkpoint, and removes its files.
    Rollback,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        const ALL: [Kind; 10] = [
            Kind::Peer,
            Kind::Remove,
            Kind::Keep,
            Kind::Open,
            Kind::Seal,
            Kind::Connect,
            Kind::RemoveNow,
            Kind::End,
            Kind::Checkpoint,
            Kind::Rollback,
        ];
        ALL.into_iter().find(|&kind| kind as u8 == byte)
    }
}

/// A socket that the broker connects to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Peer(u32);

/// The program's side: a connection to the broker. It may be used by several threads.
#[derive(Debug)]
pub struct Broker {
    socket: Mutex<OwnedFd>,
    /// Readable once the broker has ended.
    process: Option<OwnedFd>,
    names: Mutex<Names>,
}

/// What the broker has to remove, for a warning if it does not.
#[derive(Debug, Default)]
struct Names {
    /// Each with whether it may come into being later.
    paths: Vec<(PathBuf, bool)>,
    /// How many there were at the checkpoint.
    checkpoint: usize,
}

impl Broker {
    /// Starts the broker. Call this before confinement, and before a second thread is started.
    ///
    /// # Errors
    /// When the broker cannot be forked or confined.
    pub fn start() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        let pid = child::fork(theirs)?;
        // Without a pidfd the end of the connection has to do, which comes a moment before the end of the process.
        let process = rustix::process::Pid::from_raw(pid).and_then(|pid| {
            rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok()
        });
        let broker = Self {
            socket: Mutex::new(ours),
            process,
            names: Mutex::default(),
        };
        // The broker sends a message once it is confined.
        let socket = broker.socket.lock().unwrap_or_else(PoisonError::into_inner);
        broker.answer(&socket, PATIENCE)?;
        drop(socket);
        Ok(broker)
    }

    /// Names a socket to connect to later, which need not exist yet.
    ///
    /// # Errors
    /// When the path is too long for a socket, or the broker is sealed.
    pub fn peer(&mut self, path: &Path) -> io::Result<Peer> {
        let (number, _) = self.ask(Kind::Peer, path.as_os_str().as_bytes(), None)?;
        Ok(Peer(number))
    }

    /// Hands over a socket's file, to be removed at an orderly end.
    ///
    /// # Errors
    /// When the folder cannot be opened, or the broker is sealed.
    pub fn remove_at_end(&mut self, file: SocketFile) -> io::Result<()> {
        let (path, identity) = file.give_away();
        self.remove_path_at_end(&path, identity)
    }

    /// The same for any file, by its device and inode. If another process has put another file in its place, that
    /// stays.
    ///
    /// # Errors
    /// When the folder cannot be opened, or the broker is sealed.
    pub fn remove_path_at_end(&mut self, path: &Path, identity: (u64, u64)) -> io::Result<()> {
        let mut content = identity.0.to_ne_bytes().to_vec();
        content.extend(identity.1.to_ne_bytes());
        content.extend(path.as_os_str().as_bytes());
        self.ask(Kind::Remove, &content, None)?;
        let is_later = identity == crate::listen::EMPTY;
        self.names().paths.push((path.to_owned(), is_later));
        Ok(())
    }

    /// The same for a folder, if it is empty by then. Name a folder before the one that it is in.
    ///
    /// # Errors
    /// When the folder or the one that it is in cannot be opened, or the broker is sealed.
    pub fn remove_folder_at_end(&mut self, path: &Path) -> io::Result<()> {
        let status = rustix::fs::lstat(path)?;
        self.remove_path_at_end(path, (status.st_dev, status.st_ino))
    }

    /// The same for a file that may not exist yet: whichever has this path and is empty at the end.
    ///
    /// # Errors
    /// When the folder cannot be opened, or the broker is sealed.
    pub fn remove_empty_at_end(&mut self, path: &Path) -> io::Result<()> {
        self.remove_path_at_end(path, crate::listen::EMPTY)
    }

    /// Hands over a descriptor that is to stay open until the program has ended, and that the program itself must not
    /// use: a lease.
    ///
    /// # Errors
    /// When the broker is sealed.
    pub fn keep(&mut self, fd: OwnedFd) -> io::Result<()> {
        self.ask(Kind::Keep, &[], Some(&fd)).map(drop)
    }

    /// Opens a file for reading.
    ///
    /// # Errors
    /// When it cannot be opened, or the broker is sealed (EPERM).
    pub fn open(&self, path: &Path) -> io::Result<File> {
        let (_, fd) = self.ask(Kind::Open, path.as_os_str().as_bytes(), None)?;
        fd.map(File::from).ok_or_else(malformed)
    }

    /// Sets a checkpoint: what was named so far stays after a [`Self::rollback`].
    ///
    /// # Errors
    /// When the broker is sealed.
    pub fn checkpoint(&self) -> io::Result<()> {
        self.ask(Kind::Checkpoint, &[], None)?;
        let mut names = self.names();
        names.checkpoint = names.paths.len();
        Ok(())
    }

    /// Has the broker forget what was named since the checkpoint: the numbers of those peers are invalid, the files are
    /// removed, the descriptors closed.
    ///
    /// # Errors
    /// When the broker is sealed.
    pub fn rollback(&self) -> io::Result<()> {
        self.ask(Kind::Rollback, &[], None)?;
        let mut names = self.names();
        let checkpoint = names.checkpoint;
        names.paths.truncate(checkpoint);
        Ok(())
    }

    /// Seals the broker: from now on it opens nothing, and accepts no more names and descriptors.
    ///
    /// # Errors
    /// When the broker cannot confine itself further.
    pub fn seal(&mut self) -> io::Result<()> {
        self.ask(Kind::Seal, &[], None).map(drop)
    }

    /// Connects to a peer. The stream does not block. If the peer's backlog is full, this fails at once (EAGAIN).
    ///
    /// # Errors
    /// Those of connect(2).
    pub fn connect(&self, peer: Peer) -> io::Result<UnixStream> {
        let (_, fd) = self.ask(Kind::Connect, &peer.0.to_ne_bytes(), None)?;
        fd.map(UnixStream::from).ok_or_else(malformed)
    }

    /// Removes the files now, when the program no longer needs them. Folders that are not empty stay until the end.
    ///
    /// # Errors
    /// When the broker has ended.
    pub fn remove_now(&self) -> io::Result<()> {
        self.ask(Kind::RemoveNow, &[], None)?;
        self.names().paths.retain(|(_, is_later)| *is_later);
        Ok(())
    }

    fn names(&self) -> MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An orderly end: the files are removed, the broker ends, and what it holds is closed. If the broker has ended
    /// before or does not answer, one warning names the files.
    pub fn end(mut self) {
        let Err(error) = self.ask_for(Kind::End, (&[], None), END) else {
            return;
        };
        // It is not waited for again.
        self.process = None;
        let names = std::mem::take(&mut self.names().paths);
        let names: Vec<_> = names
            .iter()
            .map(|(path, _)| path.display().to_string())
            .collect();
        if !names.is_empty() {
            crate::warn(&format!(
                "the broker process did not remove what may be left of {}: {error}",
                names.join(", ")
            ));
        }
    }

    fn ask(
        &self,
        kind: Kind,
        content: &[u8],
        fd: Option<&OwnedFd>,
    ) -> io::Result<(u32, Option<OwnedFd>)> {
        self.ask_for(kind, (content, fd), PATIENCE)
    }

    fn ask_for(
        &self,
        kind: Kind,
        (content, fd): (&[u8], Option<&OwnedFd>),
        patience: Duration,
    ) -> io::Result<(u32, Option<OwnedFd>)> {
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        if 1 + content.len() > LONGEST_REQUEST {
            return Err(Errno::NAMETOOLONG.into());
        }
        let kind = [kind as u8];
        let parts = [IoSlice::new(&kind), IoSlice::new(content)];
        send(&socket, &parts, fd)?;
        self.answer(&socket, patience)
    }

    fn answer(&self, socket: &OwnedFd, patience: Duration) -> io::Result<(u32, Option<OwnedFd>)> {
        if !is_readable(socket, patience)? {
            // A reply that comes too late must not be taken for the reply to a later request.
            let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
            return Err(Errno::TIMEDOUT.into());
        }
        let mut bytes = [0; 8];
        let (length, fd) = receive(socket, &mut bytes)?;
        if length != bytes.len() {
            return Err(io::Error::new(
                io::ErrorKind::BrokenPipe,
                "the broker process has ended",
            ));
        }
        let [a, b, c, d, e, f, g, h] = bytes;
        match i32::from_ne_bytes([a, b, c, d]) {
            0 => Ok((u32::from_ne_bytes([e, f, g, h]), fd)),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }
}

/// A program that fails before it serves leaves no broker behind either.
impl Drop for Broker {
    fn drop(&mut self) {
        let socket = self
            .socket
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        // The broker ends when the connection is closed.
        let _ = rustix::net::shutdown(&*socket, rustix::net::Shutdown::Both);
        if let Some(process) = &self.process {
            // If the broker takes longer, it still ends on its own.
            let _ = is_readable(process, END);
        }
    }
}

/// Waits until `patience` has passed or there is something to read. Returns whether there is.
fn is_readable(fd: &OwnedFd, patience: Duration) -> rustix::io::Result<bool> {
    let patience = Timespec::try_from(patience).unwrap_or_default();
    loop {
        match poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&patience)) {
            Err(Errno::INTR) => {}
            other => return Ok(other? > 0),
        }
    }
}

fn malformed() -> io::Error {
    io::Error::other("the broker gave no descriptor")
}

/// Sends one message, with a descriptor.
fn send(socket: &OwnedFd, parts: &[IoSlice<'_>], fd: Option<&OwnedFd>) -> rustix::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = fd.map(|fd| [fd.as_fd()]);
    if let Some(fds) = &fds {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    loop {
        match sendmsg(socket, parts, &mut control, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            other => return other.map(drop),
        }
    }
}

/// Receives one message, with the descriptor that came with it. Its length is 0 when the other side is gone.
fn receive(socket: &OwnedFd, bytes: &mut [u8]) -> rustix::io::Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let parts = &mut [IoSliceMut::new(bytes)];
        match recvmsg(socket, parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            other => break other?,
        }
    };
    let mut fds = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let fd = fds.next().and_then(|mut fds| fds.next());
    let cut = received.flags.contains(ReturnFlags::TRUNC);
    Ok((if cut { 0 } else { received.bytes }, fd))
}

/// A path from the bytes of a request.
fn path(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

/// For close_range(2).
fn raw(fd: &OwnedFd) -> RawFd {
    fd.as_raw_fd()
}
