//! What this host refuses of the confinement, found out by a process that tries all of it and ends.

use std::fmt;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::namespaces::{Access, Network, Visible};
use super::paths::{Allowed, Rules};
use super::{Confinement, namespaces};

/// A part of the confinement.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Part {
    /// Process numbers of a program's own, which its starter gives it.
    Processes,
    /// Mount, network and IPC namespaces, and a root folder of its own.
    Namespaces,
    /// Rules for paths.
    Landlock,
    /// A list of system calls.
    Seccomp,
}

impl Part {
    fn from_letter(letter: &str) -> Option<Self> {
        let all = [
            Self::Processes,
            Self::Namespaces,
            Self::Landlock,
            Self::Seccomp,
        ];
        all.into_iter().find(|part| part.letter() == letter)
    }

    fn letter(self) -> &'static str {
        match self {
            Self::Processes => "p",
            Self::Namespaces => "n",
            Self::Landlock => "l",
            Self::Seccomp => "s",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Processes => "process namespaces",
            Self::Namespaces => "mount and network namespaces",
            Self::Landlock => "Landlock",
            Self::Seccomp => "seccomp",
        }
    }

    /// What a guest is without it, and who can change that.
    #[must_use]
    pub fn advice(self) -> &'static str {
        match self {
            Self::Processes => {
                "a program that is taken over sees the numbers of the host's processes, and can signal none; \
                 root's guests have them where a container does not refuse them"
            }
            Self::Namespaces => {
                "its filter alone keeps a program that is taken over from the host's files and sockets; \
                 allow user namespaces (user.max_user_namespaces, AppArmor, a container's profile) or run as root"
            }
            Self::Landlock => {
                "before it serves, a program that is taken over opens what its user may; \
                 it takes Linux 5.13 and landlock in lsm="
            }
            Self::Seccomp => "no program starts; it takes a kernel with CONFIG_SECCOMP_FILTER",
        }
    }
}

/// A part of the confinement that this user does not get on this host.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Refused {
    /// Which.
    pub part: Part,
    /// The host's reason.
    pub why: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no {}: {}", self.part.name(), self.why)
    }
}

/// How long trying the confinement may take.
const ANSWER: Duration = Duration::from_secs(10);

/// What begins the line that says why it could not be tried.
const FAILED: &str = "!";

/// Each part of the confinement that programs started by this user would not have, in one line each. To be called
/// before there is a second thread.
///
/// # Errors
/// When there can be no other process, or it does not answer within ten seconds.
pub fn refused() -> io::Result<Vec<Refused>> {
    let (reader, writer) = io::pipe()?;
    // SAFETY: the process has one thread. The child tries what is to be found out and ends; nothing of the parent's is
    // dropped or flushed there. Neither the standard library nor rustix can fork.
    let pid = match unsafe { libc::fork() } {
        -1 => return Err(io::Error::last_os_error()),
        0 => {
            let tried = std::panic::catch_unwind(|| attempt(writer));
            // SAFETY: as above.
            unsafe { libc::_exit(i32::from(!matches!(tried, Ok(Ok(()))))) }
        }
        pid => pid,
    };
    drop(writer);
    let read = read_until(reader, Instant::now() + ANSWER);
    if read.is_err() {
        // SAFETY: the child has not been waited for, so the number is its.
        unsafe { libc::kill(pid, libc::SIGKILL) };
    }
    let mut status = 0;
    // SAFETY: it waits for the child of above, and `status` lives until it returns.
    let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    let lines = read?;
    if waited != pid || status != 0 {
        return Err(io::Error::other("trying the confinement failed"));
    }
    if let Some(why) = lines.lines().find_map(|line| line.strip_prefix(FAILED)) {
        return Err(io::Error::other(why.to_owned()));
    }
    Ok(lines.lines().filter_map(parse).collect())
}

/// Reads to the end, which comes before the deadline or is an error.
fn read_until(mut reader: PipeReader, deadline: Instant) -> io::Result<String> {
    let mut lines = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&reader, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let mut buffer = [0; 4096];
        match reader.read(&mut buffer)? {
            0 => return String::from_utf8(lines).map_err(io::Error::other),
            count => lines.extend_from_slice(buffer.get(..count).unwrap_or_default()),
        }
    }
}

/// The version of the kernel's Landlock; `None` where it has none.
#[must_use]
pub fn landlock_abi() -> Option<u32> {
    const VERSION: u32 = 1;
    // SAFETY: with this flag the call only returns a number; it takes no attributes. The `landlock` crate does not
    // return that number.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<libc::c_void>(),
            0_usize,
            VERSION,
        )
    };
    u32::try_from(version).ok().filter(|version| *version > 0)
}

fn parse(line: &str) -> Option<Refused> {
    let (letter, why) = line.split_at_checked(1)?;
    let part = Part::from_letter(letter)?;
    let why = why.to_owned();
    Some(Refused { part, why })
}

/// Tries them in the order of the stages. Writes a line for each that is refused.
fn attempt(mut report: PipeWriter) -> io::Result<()> {
    let mut refused = |part: Part, why: &dyn fmt::Display| {
        let why = why.to_string().replace('\n', " ");
        writeln!(report, "{}{why}", part.letter())
    };
    if !geteuid().is_root() {
        refused(Part::Processes, &"only root has them")?;
    } else if let Err(error) = namespaces::number_anew() {
        refused(Part::Processes, &error)?;
    }
    let visible = [
        ("/proc/meminfo", Access::Read),
        ("/dev/null", Access::Write),
    ];
    let visible = visible.map(|(path, access)| Visible {
        path: path.into(),
        access,
    });
    match namespaces::enter(&visible, Network::None) {
        Ok(None) => {}
        Ok(Some(why)) => refused(Part::Namespaces, &why)?,
        // No program would start, and another time each may.
        Err(error) => return writeln!(report, "{FAILED}{error}"),
    }
    rustix::thread::set_no_new_privs(true)?;
    match Rules::new(&Allowed::default()).and_then(Rules::restrict) {
        Ok(true) => {}
        Ok(false) => refused(Part::Landlock, &"the kernel has none")?,
        Err(error) => refused(Part::Landlock, &error)?,
    }
    let filters = Confinement::new().syscalls.compile();
    match filters.and_then(|filters| filters.apply()) {
        Ok(()) => Ok(()),
        Err(error) => refused(Part::Seccomp, &error),
    }
}
