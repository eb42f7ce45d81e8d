//! Locks on image files that QEMU's processes and ours both obey.
//!
//! QEMU describes what a user of an image does (permissions) and what it lets others do (sharing) by read locks on
//! single bytes: 100+i for each permission held, 200+i for each one not shared. To see whether somebody objects, it
//! asks for a write lock at 200+i for what it wants and at 100+i for what it does not share. The locks belong to the
//! open file description and go when it is closed, so a crash leaves none behind.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use crate::error::{Error, ErrorKind, Result};

const HELD_BASE: i64 = 100;
const UNSHARED_BASE: i64 = 200;

/// Permissions, numbered as QEMU numbers them.
const PERMISSIONS: [&str; 4] = ["consistent read", "write", "write unchanged", "resize"];
const CONSISTENT_READ: u8 = 1 << 0;
const WRITE: u8 = 1 << 1;
const RESIZE: u8 = 1 << 3;

/// How long to wait for the locks of another process, and the pause between two attempts.
const PATIENCE: Duration = Duration::from_millis(200);
const PAUSE: Duration = Duration::from_millis(5);

/// A lock on an image; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct FileLock {
    // The same as the image's storage has.
    file: Arc<File>,
}

/// Why a lock could not be had.
enum Failure {
    /// Another process is in the way.
    Taken(Error),
    /// The file system has no locks, or none any more.
    Unavailable(Error),
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Taken(error) | Failure::Unavailable(error) => error,
        }
    }
}

/// Where the bytes are that locks may be on, and how many.
const ALL_BYTES: (i64, i64) = (
    HELD_BASE,
    UNSHARED_BASE - HELD_BASE + PERMISSIONS.len() as i64,
);

impl Drop for FileLock {
    fn drop(&mut self) {
        // The image's storage may still have the file open; and a child that another thread has just forked has the
        // description, too, until it starts its program.
        let mut all = flock(libc::F_UNLCK, ALL_BYTES.0);
        all.l_len = ALL_BYTES.1;
        let _ = fcntl(&self.file, FcntlArg::F_OFD_SETLK(&all));
    }
}

fn flock(kind: libc::c_int, byte: i64) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    }
}

/// What a user of an image does with it, and what it lets others do meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// Writes; nobody else does.
    Write,
    /// Reads; nobody writes.
    Read,
    /// Reads, whatever others do.
    ReadShared,
}

impl FileLock {
    /// Locks for `usage`. It waits a moment for a lock that is in the way: a process that was just killed holds its
    /// locks until the system has cleared it away. Where the file system knows no locks, nobody can have any, and none
    /// are taken; a user who lets everybody do everything needs none either.
    ///
    /// # Errors
    /// [`ErrorKind::Locked`] if another process holds or forbids what is wanted.
    pub(crate) fn acquire(file: &Arc<File>, usage: Use, path: &Path) -> Result<Self> {
        patiently(|| Self::attempt(file, usage, path))
    }

    /// Whether another process has the image open for writing.
    pub(crate) fn has_writer(file: &File) -> bool {
        is_taken(file, HELD_BASE + 1).unwrap_or(false)
    }

    fn attempt(file: &Arc<File>, usage: Use, path: &Path) -> Result<Self> {
        let (held, unshared) = match usage {
            Use::Write => (CONSISTENT_READ | WRITE | RESIZE, WRITE | RESIZE),
            Use::Read => (CONSISTENT_READ, WRITE | RESIZE),
            Use::ReadShared => (CONSISTENT_READ, 0),
        };
        let lock = Self { file: file.clone() };
        // As QEMU finds out whether there are locks at all.
        if is_taken(&lock.file, UNSHARED_BASE).is_err() {
            return Ok(lock);
        }
        match lock.take(held, unshared, path) {
            Err(Failure::Unavailable(_)) if usage == Use::ReadShared => Ok(lock),
            taken => Ok(taken.map(|()| lock)?),
        }
    }

    fn take(&self, held: u8, unshared: u8, path: &Path) -> Result<(), Failure> {
        let file = &self.file;
        for (index, name) in PERMISSIONS.iter().enumerate() {
            let bit = 1u8 << index;
            let index = index as i64;
            if held & bit != 0 {
                set(file, HELD_BASE + index, name, path)?;
            }
            if unshared & bit != 0 {
                set(file, UNSHARED_BASE + index, name, path)?;
            }
        }
        for (index, name) in PERMISSIONS.iter().enumerate() {
            let bit = 1u8 << index;
            let index = index as i64;
            if held & bit != 0 && taken(file, UNSHARED_BASE + index)? {
                return Err(Failure::Taken(conflict(name, "", path)));
            }
            if unshared & bit != 0 && taken(file, HELD_BASE + index)? {
                return Err(Failure::Taken(conflict(name, "shared ", path)));
            }
        }
        Ok(())
    }
}

/// Tries until it is no lock that is in the way, or for as long as a process takes to die.
fn patiently<T>(mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        match attempt() {
            Err(error) if error.kind() == ErrorKind::Locked && start.elapsed() < PATIENCE => {
                // Nothing is held meanwhile, so nobody is in anybody's way.
                std::thread::sleep(PAUSE);
            }
            outcome => return outcome,
        }
    }
}

fn conflict(name: &str, shared: &str, path: &Path) -> Error {
    Error::lock(path, format!("{shared}\"{name}\""))
}

fn set(file: &File, byte: i64, name: &str, path: &Path) -> Result<(), Failure> {
    match fcntl(file, FcntlArg::F_OFD_SETLK(&flock(libc::F_RDLCK, byte))) {
        Ok(_) => Ok(()),
        Err(Errno::EAGAIN | Errno::EACCES) => Err(Failure::Taken(conflict(name, "", path))),
        Err(error) => Err(unavailable("lock", byte, error)),
    }
}

fn taken(file: &File, byte: i64) -> Result<bool, Failure> {
    is_taken(file, byte).map_err(|error| unavailable("check lock on", byte, error))
}

fn unavailable(what: &str, byte: i64, error: Errno) -> Failure {
    let error = io::Error::from(error);
    Failure::Unavailable(Error::io(format!("Failed to {what} byte {byte}"), error))
}

fn is_taken(file: &File, byte: i64) -> nix::Result<bool> {
    let mut lock = flock(libc::F_WRLCK, byte);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock))?;
    Ok(lock.l_type != libc::F_UNLCK as libc::c_short)
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        reason = "a test that cannot be set up has failed"
    )]

    use super::*;
    use crate::error::Denied;

    fn open(path: &Path) -> Arc<File> {
        let file = File::options().read(true).write(true).open(path);
        Arc::new(file.unwrap())
    }

    #[test]
    fn a_lock_that_goes_is_waited_for() {
        let image = tempfile::NamedTempFile::new().unwrap();
        let path = image.path();
        let mut killed = Some(FileLock::acquire(&open(path), Use::Write, path).unwrap());
        let mut attempts = 0;
        let file = open(path);
        let lock = patiently(|| {
            attempts += 1;
            if attempts == 3 {
                killed.take();
            }
            FileLock::attempt(&file, Use::Read, path)
        });
        assert!(lock.is_ok() && attempts == 3);
    }

    #[test]
    fn a_lock_that_stays_is_not_waited_for_long_and_no_other_error_at_all() {
        let image = tempfile::NamedTempFile::new().unwrap();
        let path = image.path();
        let _running = FileLock::acquire(&open(path), Use::Write, path).unwrap();
        let start = Instant::now();
        let error = FileLock::acquire(&open(path), Use::Read, path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Locked);
        let lock = Denied::Lock(path.to_owned(), "shared \"write\"".to_owned());
        assert_eq!(error.denied(), Some(&lock));
        assert!(start.elapsed() >= PATIENCE);
        let mut attempts = 0;
        let refused = patiently(|| {
            attempts += 1;
            Err::<(), _>(Error::invalid("not this"))
        });
        assert!(refused.is_err() && attempts == 1);
    }
}
