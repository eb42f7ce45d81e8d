//! Namespaces of dnsmasq and of the processes that start it, and the files that they see: this program, the system's
//! read-only files and the folder of the leases, and nothing else of the host.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use bulkhead_process::confine::Files;
use rustix::process::{PidfdFlags, getpid, pidfd_open};
use rustix::thread::{ThreadNameSpaceType, UnshareFlags, move_into_thread_name_spaces};

use super::params::Params;
use super::privileges;

/// Programs need these folders to start.
const SYSTEM: &[&str] = &["/usr", "/lib", "/lib64"];
/// dnsmasq looks up its user and the DNS servers of the host here.
const SETTINGS: &str = "/etc";
/// The dynamic loaders.
const LOADERS: &[&str] = &["/lib64/ld-linux-x86-64.so.2", "/lib/ld-musl-x86_64.so.1"];
/// The port on which dnsmasq serves DNS, and to which it connects on other servers.
const DNS: u16 = 53;

/// The namespaces that a supervisor starts processes in.
pub(super) struct Namespaces {
    /// The supervisor, whose own PID namespace is that of every process but init.
    own: OwnedFd,
    /// Whether the host allows namespaces.
    isolated: bool,
}

impl Namespaces {
    /// Enters new mount and IPC namespaces, if the host allows that, and in any case restricts this process to the
    /// files that it needs. Also returns a description of what the host does not allow.
    pub(super) fn enter(params: &Params<'_>) -> io::Result<(Self, Option<String>)> {
        let files = files(params).program(params.program);
        let missing = files.isolate().map_err(io::Error::other)?;
        let isolated = missing.is_none();
        let landlock = files.restrict().map_err(io::Error::other)?;
        let no_landlock = (!landlock).then(|| "no Landlock".to_owned());
        let missing: Vec<_> = missing.into_iter().chain(no_landlock).collect();
        let missing = (!missing.is_empty()).then(|| missing.join("; "));
        Ok((Namespaces::inherit(isolated)?, missing))
    }

    /// The namespaces that this process was started in, as the standby is.
    pub(super) fn inherit(isolated: bool) -> io::Result<Self> {
        let own = pidfd_open(getpid(), PidfdFlags::empty())?;
        Ok(Namespaces { own, isolated })
    }

    pub(super) fn is_isolated(&self) -> bool {
        self.isolated
    }

    /// From here on a process that is started is the init of a new PID namespace.
    pub(super) fn enter_for_init(&mut self) -> io::Result<()> {
        if !self.isolated {
            return Ok(());
        }
        privileges::with_raised(|| unshare(UnshareFlags::NEWPID))
    }

    /// From here on processes are started in the supervisor's own PID namespace again.
    pub(super) fn leave_after_init(&mut self) -> io::Result<()> {
        if !self.isolated {
            return Ok(());
        }
        let kind = ThreadNameSpaceType::PROCESS_ID;
        privileges::with_raised(|| Ok(move_into_thread_name_spaces(self.own.as_fd(), kind)?))
    }
}

/// Restricts the process that executes dnsmasq to the same files without this program.
pub(super) fn restrict_dnsmasq(params: &Params<'_>) -> io::Result<()> {
    files(params).restrict().map(drop).map_err(io::Error::other)
}

fn files(params: &Params<'_>) -> Files {
    let mut files = Files::new()
        .read_path(SETTINGS)
        .read_path("/dev/urandom")
        .write_path("/dev/null")
        .write_path(params.leases)
        .program(params.dnsmasq)
        .bind_tcp(&[DNS, 0])
        .connect_tcp(&[DNS]);
    for folder in SYSTEM {
        files = files.library_path(folder);
    }
    for loader in LOADERS {
        files = files.program(loader);
    }
    // It may be a symbolic link, for example to a file of systemd-resolved.
    if let Ok(path) = fs::canonicalize("/etc/resolv.conf")
        && let Some(folder) = path.parent()
    {
        files = files.read_path(folder);
    }
    files
}

/// Moves this process, which has one thread, to new namespaces.
#[expect(
    deprecated,
    reason = "the other one is for callers that unshare descriptors"
)]
fn unshare(what: UnshareFlags) -> io::Result<()> {
    Ok(rustix::thread::unshare(what)?)
}
