//! Confinement: what a process gives up before it reads the first hostile byte.
//!
//! In this order: namespaces of its own, with an empty root folder ([`Confinement::isolate`]), Landlock (paths),
//! capabilities, seccomp (system calls and their arguments). What is not allowed fails with EPERM and has no effect.
//! A process cannot undo any of it.
//!
//! ```no_run
//! # use bulkhead_process::confine::Confinement;
//! Confinement::new()
//!     .isolate()
//!     .allow(&[libc::SYS_pread64, libc::SYS_pwrite64])
//!     .enter()?;
//! # Ok::<(), bulkhead_process::confine::ConfineError>(())
//! ```
//!
//! A program that must parse hostile files by their names does so in a first stage, in which only what it names can be
//! seen and opened:
//!
//! ```no_run
//! # use bulkhead_process::confine::Confinement;
//! let serving = Confinement::new().isolate().allow(&[libc::SYS_pread64]);
//! let opening = Confinement::new()
//!     .allow(&[libc::SYS_openat, libc::SYS_statx])
//!     .read_path("/images")
//!     .write_path("/images/disk.qcow2");
//! let first = serving.begin(opening)?;
//! // … the image is opened: its header, its backing chain …
//! first.finish()?; // from here on nothing is opened any more
//! # Ok::<(), bulkhead_process::confine::ConfineError>(())
//! ```
//!
//! A thread that needs less than its process gives up the rest for itself: [`Confinement::for_thread`].

mod base;
mod capabilities;
mod files;
mod host;
mod namespaces;
mod paths;
mod syscalls;

use std::path::Path;
use std::time::{Duration, Instant};

pub use host::{Part, Refused, landlock_abi, refused};
pub use rustix::thread::CapabilitySet;

use namespaces::Network;
use paths::{Allowed, Rules};

pub use files::Files;
use syscalls::{Filters, SyscallList, equal};

/// How long the kernel may take to end a thread that has returned.
const ENDING: Duration = Duration::from_secs(1);

/// Why a process could not be confined. It must not go on.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// Confinement holds for threads started later, so it must come before them.
    #[error("cannot confine a process that has {0} threads")]
    Threads(usize),
    /// A capability set was refused.
    #[error("cannot drop capabilities: {0}")]
    Capabilities(#[source] std::io::Error),
    /// A path that may be used cannot be opened, or Landlock refused the rules.
    #[error("cannot restrict file access: {0}")]
    Paths(String),
    /// The process's user is not mapped in its user namespace.
    #[error("cannot isolate the process: {0}")]
    Namespaces(String),
    /// The seccomp filter was refused.
    #[error("cannot restrict system calls: {0}")]
    Syscalls(String),
}

/// What a process may still do, beginning with what every Rust program needs.
#[derive(Clone, Debug)]
pub struct Confinement {
    syscalls: SyscallList,
    paths: Allowed,
    capabilities: CapabilitySet,
    isolated: Option<Network>,
}

impl Default for Confinement {
    fn default() -> Self {
        Self::new()
    }
}

impl Confinement {
    /// Allows what the language's runtime and an event loop need, and nothing else.
    #[must_use]
    pub fn new() -> Self {
        let mut confinement = Self::empty();
        base::allow(&mut confinement.syscalls);
        confinement
    }

    /// For one thread of a program that is confined already, which gives up more than the others with
    /// [`Self::enter_thread`]: it starts no thread, makes no descriptor, and uses no socket.
    #[must_use]
    pub fn for_thread() -> Self {
        let mut confinement = Self::empty();
        base::allow_thread(&mut confinement.syscalls);
        confinement
    }

    fn empty() -> Self {
        Self {
            syscalls: SyscallList::default(),
            paths: Allowed::default(),
            capabilities: CapabilitySet::empty(),
            isolated: None,
        }
    }

    /// Moves the process to mount, network and IPC namespaces of its own, with a root folder in which there is nothing
    /// but the paths that are allowed, read-only where they are to be read only. Where the host does not allow that,
    /// one warning says so, and the rest of the confinement holds.
    #[must_use]
    pub fn isolate(mut self) -> Self {
        self.isolated = Some(Network::None);
        self
    }

    /// The same for a process whose work is the host's network, which it keeps. Only root can be isolated so.
    #[must_use]
    pub fn isolate_but_network(mut self) -> Self {
        self.isolated = Some(Network::Host);
        self
    }

    /// Allows system calls whatever their arguments.
    #[must_use]
    pub fn allow(mut self, numbers: &[libc::c_long]) -> Self {
        for &number in numbers {
            self.syscalls.always(number);
        }
        self
    }

    /// Allows ioctl(2) with these requests.
    #[must_use]
    pub fn allow_ioctls(mut self, requests: &[u64]) -> Self {
        for &request in requests {
            // The kernel looks at the low 32 bits only.
            let request = equal(1, request & 0xffff_ffff);
            self.syscalls.when(libc::SYS_ioctl, &[request]);
        }
        self
    }

    /// Allows socket(2) with these address families.
    #[must_use]
    pub fn allow_socket_families(mut self, families: &[libc::c_int]) -> Self {
        for &family in families {
            let family = equal(0, u64::from(family.unsigned_abs()));
            self.syscalls.when(libc::SYS_socket, &[family]);
        }
        self
    }

    /// Allows socketpair(2), for connected Unix stream sockets.
    #[must_use]
    pub fn allow_socket_pairs(mut self) -> Self {
        base::allow_socket_pairs(&mut self.syscalls);
        self
    }

    /// Allows fcntl(2) with these commands, beyond those about a descriptor's flags.
    #[must_use]
    pub fn allow_fcntls(mut self, commands: &[libc::c_int]) -> Self {
        for &command in commands {
            base::allow_fcntl(&mut self.syscalls, command);
        }
        self
    }

    /// Allows mapping files that are open. Memory is never executable.
    #[must_use]
    pub fn allow_file_mappings(mut self) -> Self {
        base::allow_file_mappings(&mut self.syscalls);
        self
    }

    /// Allows reading the file, or what is below the folder, if the system calls for it are allowed too.
    #[must_use]
    pub fn read_path(mut self, path: impl AsRef<Path>) -> Self {
        self.paths.read.push(path.as_ref().to_owned());
        self
    }

    /// Allows reading and writing the file, or what is below the folder, if the system calls for it are allowed too.
    #[must_use]
    pub fn write_path(mut self, path: impl AsRef<Path>) -> Self {
        self.paths.write.push(path.as_ref().to_owned());
        self
    }

    /// Allows removing files and empty folders in the folder, such as a socket of its own, if the system calls for it
    /// are allowed too.
    #[must_use]
    pub fn remove_below(mut self, folder: impl AsRef<Path>) -> Self {
        self.paths.remove.push(folder.as_ref().to_owned());
        self
    }

    /// Keeps these capabilities, as far as the process has them now. Those that it gains in a user namespace do not
    /// count.
    #[must_use]
    pub fn keep_capabilities(mut self, kept: CapabilitySet) -> Self {
        self.capabilities |= kept;
        self
    }

    /// Confines the process.
    ///
    /// # Errors
    /// When any part of it is refused, or the process has a second thread already. The process may be half confined
    /// then: end it.
    pub fn enter(self) -> Result<(), ConfineError> {
        crate::notify::prepare();
        self.enter_silently()
    }

    /// The same for a process that has nothing to report to a service manager.
    pub(crate) fn enter_silently(self) -> Result<(), ConfineError> {
        self.enter_stage(None).map(drop)
    }

    /// Enters a first stage, in which what `opening` allows is allowed, too: its system calls, and the files and
    /// folders it names, of which those that are not there are left out.
    ///
    /// # Errors
    /// See [`Self::enter`].
    pub fn begin(self, mut opening: Confinement) -> Result<First, ConfineError> {
        crate::notify::prepare();
        let Allowed {
            read,
            write,
            remove,
            ..
        } = &mut opening.paths;
        for paths in [&mut *read, &mut *write, &mut *remove] {
            paths.retain(|path| path.exists());
        }
        read.extend_from_slice(&self.paths.read);
        write.extend_from_slice(&self.paths.write);
        remove.extend_from_slice(&self.paths.remove);
        base::allow_finishing(&mut opening.syscalls);
        opening.syscalls.add(&self.syscalls);
        opening.capabilities |= self.capabilities;
        opening.isolated = opening.isolated.or(self.isolated);
        let last = opening.enter_stage(Some(self))?;
        Ok(First { last })
    }

    /// Puts these rules in place, and prepares those of the last stage while its paths can be opened.
    fn enter_stage(self, last: Option<Confinement>) -> Result<Option<Last>, ConfineError> {
        alone()?;
        // Made first: building a filter allocates and may fail, and nothing has been given up yet.
        let filters = self.syscalls.compile()?;
        // Before the user namespace: in that a process has every capability, and so could ignore the modes of its
        // user's own files.
        let held = capabilities::held()?;
        let missing = match self.isolated {
            Some(network) => namespaces::enter(&self.paths.visible(), network)?,
            None => None,
        };
        let rules = Rules::new(&self.paths)?;
        let last = last.map(|last| Last::new(last, held)).transpose()?;
        rustix::thread::set_no_new_privs(true)
            .map_err(|error| ConfineError::Capabilities(error.into()))?;
        let enforced = rules.restrict()?;
        let bounding = last
            .as_ref()
            .map_or(self.capabilities & held, |last| last.capabilities);
        capabilities::keep(self.capabilities & held, bounding)?;
        filters.apply()?;
        if self.isolated.is_some() {
            report(missing.as_deref(), enforced);
        }
        Ok(last)
    }

    /// Confines the calling thread further; its process is confined already. Only system calls count.
    ///
    /// # Errors
    /// When the filter is refused.
    pub fn enter_thread(self) -> Result<(), ConfineError> {
        self.syscalls.compile()?.apply_to_thread()
    }
}

/// A process in its first stage.
#[derive(Debug)]
#[must_use = "the process can still open what it was given"]
pub struct First {
    last: Option<Last>,
}

impl First {
    /// Enters the last stage: nothing of the first is allowed any more. Threads of the first have ended.
    ///
    /// # Errors
    /// When any part of it is refused, or the process has a second thread already. End it then.
    pub fn finish(self) -> Result<(), ConfineError> {
        // The kernel may still count a thread for a moment after it was joined.
        let start = Instant::now();
        while namespaces::alone().is_err() {
            if start.elapsed() > ENDING {
                return Err(ConfineError::Threads(2));
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        self.last.map_or(Ok(()), Last::enter)
    }
}

/// The rules of the last stage.
#[derive(Debug)]
struct Last {
    filters: Filters,
    rules: Rules,
    capabilities: CapabilitySet,
}

impl Last {
    /// `held` are the capabilities that the process had before its confinement began.
    fn new(last: Confinement, held: CapabilitySet) -> Result<Self, ConfineError> {
        Ok(Self {
            filters: last.syscalls.compile()?,
            rules: Rules::new(&last.paths)?,
            capabilities: last.capabilities & held,
        })
    }

    fn enter(self) -> Result<(), ConfineError> {
        self.rules.restrict()?;
        capabilities::keep_only(self.capabilities)?;
        self.filters.apply()
    }
}

/// Warns of what the host does not allow, in one line.
fn report(missing: Option<&str>, landlock: bool) {
    let landlock = (!landlock).then_some("no Landlock");
    let missing: Vec<_> = missing.into_iter().chain(landlock).collect();
    if !missing.is_empty() {
        crate::warn(&format!(
            "the host does not allow all of the confinement ({}): see \"What the host must allow\" in ARCHITECTURE.md",
            missing.join("; ")
        ));
    }
}

/// Landlock holds for the calling thread and its children only.
fn alone() -> Result<(), ConfineError> {
    // Without /proc there is nothing to count; seccomp reaches all threads in any case.
    let threads = std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    match threads {
        1 => Ok(()),
        more => Err(ConfineError::Threads(more)),
    }
}
