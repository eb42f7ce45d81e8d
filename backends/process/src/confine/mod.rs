//! Confinement: what a process gives up before it meets its first hostile byte.
//!
//! In this order: no_new_privs, Landlock (paths), capabilities, seccomp (system calls). What is not allowed fails with EPERM and has
//! no effect. After [`Confinement::enter`] nothing can be got back.
//!
//! ```no_run
//! # use bulkhead_process::confine::Confinement;
//! Confinement::new()
//!     .allow(&[libc::SYS_pread64, libc::SYS_pwrite64])
//!     .allow_socket_families(&[libc::AF_UNIX])
//!     .enter()?;
//! # Ok::<(), bulkhead_process::confine::ConfineError>(())
//! ```

mod base;
mod capabilities;
mod paths;
mod syscalls;

use std::path::{Path, PathBuf};

pub use rustix::thread::CapabilitySet;

use syscalls::SyscallList;

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
    /// The seccomp filter was refused.
    #[error("cannot restrict system calls: {0}")]
    Syscalls(String),
}

/// What a process may still do. It starts from what every Rust program needs.
#[derive(Debug)]
pub struct Confinement {
    syscalls: SyscallList,
    read: Vec<PathBuf>,
    write: Vec<PathBuf>,
    remove: Vec<PathBuf>,
    capabilities: CapabilitySet,
}

impl Default for Confinement {
    fn default() -> Self {
        Self::new()
    }
}

impl Confinement {
    /// Nothing but what the language's runtime and an event loop need.
    #[must_use]
    pub fn new() -> Self {
        let mut syscalls = SyscallList::default();
        base::allow(&mut syscalls);
        Self {
            syscalls,
            read: Vec::new(),
            write: Vec::new(),
            remove: Vec::new(),
            capabilities: CapabilitySet::empty(),
        }
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
            self.syscalls
                .when_equal(libc::SYS_ioctl, 1, request & 0xffff_ffff);
        }
        self
    }

    /// Allows socket(2) with these address families.
    #[must_use]
    pub fn allow_socket_families(mut self, families: &[libc::c_int]) -> Self {
        for &family in families {
            self.syscalls
                .when_equal(libc::SYS_socket, 0, u64::from(family.unsigned_abs()));
        }
        self
    }

    /// Allows reading the file, or what is below the folder, if the system calls for it are allowed too.
    #[must_use]
    pub fn read_path(mut self, path: impl AsRef<Path>) -> Self {
        self.read.push(path.as_ref().to_owned());
        self
    }

    /// Allows reading and writing the file, or what is below the folder, if the system calls for it are allowed too.
    #[must_use]
    pub fn write_path(mut self, path: impl AsRef<Path>) -> Self {
        self.write.push(path.as_ref().to_owned());
        self
    }

    /// Allows removing files in the folder, such as a socket of its own, if the system calls for it are allowed too.
    #[must_use]
    pub fn remove_below(mut self, folder: impl AsRef<Path>) -> Self {
        self.remove.push(folder.as_ref().to_owned());
        self
    }

    /// Keeps these capabilities of those the process has.
    #[must_use]
    pub fn keep_capabilities(mut self, kept: CapabilitySet) -> Self {
        self.capabilities |= kept;
        self
    }

    /// Confines the process.
    ///
    /// # Errors
    /// When any part of it is refused, or the process has a second thread already. The process may be half confined then: end it.
    pub fn enter(self) -> Result<(), ConfineError> {
        crate::notify::prepare();
        self.enter_silently()
    }

    /// The same for a process that has nothing to report to a service manager.
    pub(crate) fn enter_silently(self) -> Result<(), ConfineError> {
        alone()?;
        // Made first: building the filter allocates and may fail, and nothing has been given up yet.
        let filters = self.syscalls.compile()?;
        paths::restrict(&self.read, &self.write, &self.remove)?;
        capabilities::keep(self.capabilities)?;
        filters.apply()
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
