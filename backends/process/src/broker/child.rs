//! The broker's own process.

use std::io::IoSlice;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::{Kind, LONGEST_REQUEST, path, raw, receive, send};
use crate::confine::{CapabilitySet, ConfineError, Confinement};
use crate::listen::{Folder, folder_of};

/// The most names and descriptors: a program that is taken over before sealing can make the broker hold no more.
const MOST: usize = 4096;

/// Forks the broker, which serves `socket` until the program has ended. Returns its process id.
pub(super) fn fork(socket: OwnedFd) -> std::io::Result<i32> {
    // SAFETY: the child only goes on in `serve`, which never returns and drops nothing of the parent's. glibc keeps its
    // allocator usable in the child; no other lock is taken there. Neither the standard library nor rustix can fork.
    match unsafe { libc::fork() } {
        -1 => Err(std::io::Error::last_os_error()),
        0 => {
            let served = std::panic::catch_unwind(|| serve(socket));
            // SAFETY: nothing of the parent's, such as what is buffered for standard output, may be done once more.
            unsafe { libc::_exit(i32::from(!matches!(served, Ok(Ok(()))))) }
        }
        pid => Ok(pid),
    }
}

fn serve(socket: OwnedFd) -> Result<(), Errno> {
    close_all_but(&socket)?;
    ignore_signals();
    // A name of its own, so that nobody takes it for the program itself.
    let _ = rustix::thread::set_name(c"bulkhead-broker");
    answer(
        &socket,
        confine()
            .map_err(|_| Errno::PERM)
            .map(|()| Answer::default()),
    )?;
    let mut state = State::default();
    let mut request = [0; LONGEST_REQUEST];
    loop {
        let (length, fd) = receive(&socket, &mut request)?;
        let Some((&kind, content)) = request.get(..length).and_then(<[u8]>::split_first) else {
            // The program has ended without asking for the files' removal.
            return Ok(());
        };
        let kind = Kind::from_byte(kind);
        let done = kind
            .ok_or(Errno::INVAL)
            .and_then(|kind| state.act(kind, content, fd));
        match answer(&socket, done) {
            // The user has more descriptors in flight on sockets than it may have open files.
            Err(Errno::TOOMANYREFS) => answer(&socket, Err(Errno::TOOMANYREFS))?,
            other => other?,
        }
        if kind == Some(Kind::End) {
            return Ok(());
        }
    }
}

/// The reply to a request: a number and a descriptor.
#[derive(Default)]
struct Answer {
    number: u32,
    fd: Option<OwnedFd>,
}

fn answer(socket: &OwnedFd, done: Result<Answer, Errno>) -> Result<(), Errno> {
    let (error, answer) = match done {
        Ok(answer) => (0, answer),
        Err(error) => (error.raw_os_error(), Answer::default()),
    };
    let parts = [error.to_ne_bytes(), answer.number.to_ne_bytes()];
    send(
        socket,
        &[IoSlice::new(parts.as_flattened())],
        answer.fd.as_ref(),
    )
}

/// A file to remove at the end.
struct Removal {
    folder: Folder,
    path: PathBuf,
    identity: (u64, u64),
}

/// What the program has named and handed over.
#[derive(Default)]
struct State {
    sealed: bool,
    peers: Vec<SocketAddrUnix>,
    files: Vec<Removal>,
    kept: Vec<OwnedFd>,
    /// How many there were of each at the checkpoint.
    checkpoint: [usize; 3],
}

impl Removal {
    /// Removes the file. Returns `false` for a folder that is not empty. A file that is gone already is no failure.
    fn remove(&self) -> bool {
        self.folder.remove(&self.path, self.identity) != Err(Errno::NOTEMPTY)
    }
}

impl State {
    fn act(&mut self, kind: Kind, content: &[u8], fd: Option<OwnedFd>) -> Result<Answer, Errno> {
        match kind {
            Kind::Connect => self.connect(content),
            Kind::RemoveNow | Kind::End => {
                self.files.retain(|file| !file.remove());
                Ok(Answer::default())
            }
            _ if self.sealed => Err(Errno::PERM),
            Kind::Checkpoint => {
                self.checkpoint = [self.peers.len(), self.files.len(), self.kept.len()];
                Ok(Answer::default())
            }
            Kind::Rollback => {
                let [peers, files, kept] = self.checkpoint;
                self.peers.truncate(peers);
                self.kept.truncate(kept);
                // The files may have been removed already.
                for file in self.files.drain(files.min(self.files.len())..) {
                    file.remove();
                }
                Ok(Answer::default())
            }
            Kind::Seal => self.seal(),
            Kind::Open => {
                // Without O_NONBLOCK, opening a FIFO would wait for a writer.
                let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
                let fd = rustix::fs::open(path(content), flags, Mode::empty())?;
                Ok(Answer {
                    number: 0,
                    fd: Some(fd),
                })
            }
            _ if self.peers.len() + self.files.len() + self.kept.len() >= MOST => Err(Errno::NOSPC),
            Kind::Peer => {
                let number = self.peers.len();
                self.peers.push(SocketAddrUnix::new(path(content))?);
                Ok(Answer {
                    number: number.try_into().map_err(|_| Errno::NOSPC)?,
                    fd: None,
                })
            }
            Kind::Remove => self.remember(content),
            Kind::Keep => {
                self.kept.push(fd.ok_or(Errno::INVAL)?);
                Ok(Answer::default())
            }
        }
    }

    fn remember(&mut self, content: &[u8]) -> Result<Answer, Errno> {
        let (device, rest) = content.split_first_chunk().ok_or(Errno::INVAL)?;
        let (inode, name) = rest.split_first_chunk().ok_or(Errno::INVAL)?;
        let identity = (u64::from_ne_bytes(*device), u64::from_ne_bytes(*inode));
        let path = PathBuf::from(path(name));
        let folder = Folder::open(&path)?;
        self.files.push(Removal {
            folder,
            path,
            identity,
        });
        Ok(Answer::default())
    }

    fn connect(&self, content: &[u8]) -> Result<Answer, Errno> {
        let number = <[u8; 4]>::try_from(content).map_err(|_| Errno::INVAL)?;
        let number = usize::try_from(u32::from_ne_bytes(number)).map_err(|_| Errno::INVAL)?;
        let address = self.peers.get(number).ok_or(Errno::INVAL)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::net::connect(&socket, address)?;
        Ok(Answer {
            number: 0,
            fd: Some(socket),
        })
    }

    fn seal(&mut self) -> Result<Answer, Errno> {
        let folders = self.files.iter().map(|file| folder_of(&file.path));
        let mut confinement = Confinement::new().allow(NEEDED);
        for folder in folders {
            confinement = confinement.remove_below(folder);
        }
        confinement = confinement
            .allow_socket_families(&[libc::AF_UNIX])
            .keep_capabilities(CapabilitySet::DAC_OVERRIDE);
        confinement.enter_silently().map_err(|_| Errno::PERM)?;
        self.sealed = true;
        Ok(Answer::default())
    }
}

/// The system calls of the sealed broker: connecting, and removing files relative to an open folder.
const NEEDED: &[libc::c_long] = &[
    libc::SYS_connect,
    libc::SYS_unlinkat,
    libc::SYS_newfstatat,
    libc::SYS_flock,
];

/// The system calls that it needs in addition before it is sealed: opening files, and sealing.
const UNTIL_SEALED: &[libc::c_long] = &[
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_getdents64,
    libc::SYS_statx,
    libc::SYS_landlock_create_ruleset,
    libc::SYS_landlock_add_rule,
    libc::SYS_landlock_restrict_self,
    libc::SYS_prctl,
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_seccomp,
];

/// The capabilities by which root connects to sockets of other users.
fn confine() -> Result<(), ConfineError> {
    Confinement::new()
        .allow(NEEDED)
        .allow(UNTIL_SEALED)
        .allow_socket_families(&[libc::AF_UNIX])
        .keep_capabilities(CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH)
        .read_path("/")
        .remove_below("/")
        .enter_silently()
}

/// Closes every other descriptor of the program, standard error too.
fn close_all_but(socket: &OwnedFd) -> Result<(), Errno> {
    let own = raw(socket).unsigned_abs();
    for (first, last) in [(0, own.checked_sub(1)), (own + 1, Some(u32::MAX))] {
        let Some(last) = last else { continue };
        // SAFETY: the descriptors belong to values of the parent's that this process never touches again.
        let closed = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        if closed != 0 {
            return Err(Errno::NOSYS);
        }
    }
    Ok(())
}

/// Blocks the signals that are sent to a group or a session: they are for the program, with which the broker ends.
fn ignore_signals() {
    // SAFETY: the set is initialised before it is read.
    unsafe {
        let mut all = std::mem::zeroed::<libc::sigset_t>();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, std::ptr::null_mut());
    }
}
