//! What this host refuses of the confinement, found out by a process that tries all of it and ends.

use std::fmt;
use std::io::{self, PipeWriter, Read, Write};

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

/// What begins the line that says why it could not be tried.
const FAILED: &str = "!";

/// Each part of the confinement that programs started by this user would not have, in one line each. To be called
/// before there is a second thread.
///
/// # Errors
/// When there can be no other process, or it does not answer.
pub fn refused() -> io::Result<Vec<Refused>> {
    let (mut reader, writer) = io::pipe()?;
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
    let mut lines = String::new();
    let read = reader.read_to_string(&mut lines);
    let mut status = 0;
    // SAFETY: it waits for the child of above, and `status` lives until it returns.
    let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    read?;
    if waited != pid || status != 0 {
        return Err(io::Error::other("trying the confinement failed"));
    }
    if let Some(why) = lines.lines().find_map(|line| line.strip_prefix(FAILED)) {
        return Err(io::Error::other(why.to_owned()));
    }
    Ok(lines.lines().filter_map(parse).collect())
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
