//! Namespaces and files of dnsmasq and what starts it: this program, the system's read-only files, the folder of its leases, and nothing
//! else of the host; System V IPC; processes.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use bulkhead_process::confine::Files;
use rustix::process::{PidfdFlags, getpid, pidfd_open};
use rustix::thread::{ThreadNameSpaceType, UnshareFlags, move_into_thread_name_spaces};

use super::{Kept, privileges};

/// What programs need to start, and dnsmasq to know who it is and which servers to ask.
const SYSTEM: &[&str] = &["/usr", "/lib", "/lib64"];
const SETTINGS: &str = "/etc";
/// What loads programs.
const LOADERS: &[&str] = &["/lib64/ld-linux-x86-64.so.2", "/lib/ld-musl-x86_64.so.1"];
/// DNS, which is also what dnsmasq asks other servers by.
const DNS: u16 = 53;

/// Where processes are started.
pub(super) struct Namespaces {
    /// This process, whose own PID namespace is where others than the keeper are started.
    own: OwnedFd,
    isolated: bool,
}

impl Namespaces {
    /// Enters namespaces of its own, if the host allows that, and gives up all files but those that are needed in any case. What the host does
    /// not allow is returned, too.
    pub(super) fn enter(kept: &Kept<'_>) -> io::Result<(Self, Option<String>)> {
        let files = files(kept).program(kept.program);
        let missing = files.isolate().map_err(io::Error::other)?;
        let isolated = missing.is_none();
        let landlock = files.restrict().map_err(io::Error::other)?;
        let no_landlock = (!landlock).then(|| "no Landlock".to_owned());
        let missing: Vec<_> = missing.into_iter().chain(no_landlock).collect();
        let missing = (!missing.is_empty()).then(|| missing.join("; "));
        Ok((Namespaces::inherit(isolated)?, missing))
    }

    /// Those that the process was started in.
    pub(super) fn inherit(isolated: bool) -> io::Result<Self> {
        let own = pidfd_open(getpid(), PidfdFlags::empty())?;
        Ok(Namespaces { own, isolated })
    }

    pub(super) fn is_isolated(&self) -> bool {
        self.isolated
    }

    /// The next process to be started is the first of a new PID namespace.
    pub(super) fn begin_keeper(&mut self) -> io::Result<()> {
        if !self.isolated {
            return Ok(());
        }
        privileges::with_raised(|| unshare(UnshareFlags::NEWPID))
    }

    /// Others are started in this process' own again.
    pub(super) fn end_keeper(&mut self) -> io::Result<()> {
        if !self.isolated {
            return Ok(());
        }
        let kind = ThreadNameSpaceType::PROCESS_ID;
        privileges::with_raised(|| Ok(move_into_thread_name_spaces(self.own.as_fd(), kind)?))
    }
}

/// For the process that becomes dnsmasq: it starts that, and nothing else ever.
pub(super) fn restrict_dnsmasq(kept: &Kept<'_>) -> io::Result<()> {
    files(kept).restrict().map(drop).map_err(io::Error::other)
}

fn files(kept: &Kept<'_>) -> Files {
    let mut files = Files::new()
        .read_path(SETTINGS)
        .read_path("/dev/urandom")
        .write_path("/dev/null")
        .write_path(kept.leases)
        .program(kept.dnsmasq)
        .bind_tcp(&[DNS, 0])
        .connect_tcp(&[DNS]);
    for folder in SYSTEM {
        files = files.library_path(folder);
    }
    for loader in LOADERS {
        files = files.program(loader);
    }
    // Where a symbolic link leads to, if that is the host's way to say which servers to ask.
    if let Ok(path) = fs::canonicalize("/etc/resolv.conf")
        && let Some(folder) = path.parent()
    {
        files = files.read_path(folder);
    }
    files
}

/// This process has one thread, and its descriptors are never unshared.
#[expect(
    deprecated,
    reason = "the other one is for callers that unshare descriptors"
)]
fn unshare(what: UnshareFlags) -> io::Result<()> {
    Ok(rustix::thread::unshare(what)?)
}
