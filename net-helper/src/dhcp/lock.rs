//! The lock file of a dnsmasq, `NETWORK.dhcp` in the state folder.
//!
//! Supervisors hold its lock until the last of them has ended, so that one of the next helper waits for them. It
//! contains init's process number, in [`PID_LENGTH`] bytes, then the arguments of [`Params`](super::params::Params)
//! with a zero between them. A later version must be able to read it.

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::process::Pid;

use super::params::invalid;
use super::pipe::{poll_readable, read_command};
use crate::inherited;
use crate::state::open_regular;

const PID_LENGTH: usize = 16;

/// How long to wait for the lock, and how long between two tries.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);
const LOCK_RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// The open file. Supervisors inherit it from each other and share its position, so each access names its offset.
pub(super) struct LockFile(File);

impl LockFile {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        open_regular(path, options.mode(0o600)).map(LockFile)
    }

    /// The file that the supervisor has passed to its standby, by the descriptor's number.
    pub(super) fn inherited(number: RawFd) -> io::Result<Self> {
        Ok(LockFile(File::from(inherited::duplicate(number)?)))
    }

    /// Does something while programs that are started inherit the file: they are given the descriptor's number.
    pub(super) fn while_inheritable<T>(&self, act: impl FnOnce(RawFd) -> T) -> io::Result<T> {
        fcntl_setfd(&self.0, FdFlags::empty())?;
        let done = act(self.0.as_raw_fd());
        fcntl_setfd(&self.0, FdFlags::CLOEXEC)?;
        Ok(done)
    }

    /// Locks the file, which supervisors of a helper that was killed hold until they have ended. False when this
    /// supervisor's own helper ends meanwhile.
    pub(super) fn lock(&self) -> io::Result<bool> {
        let deadline = Instant::now() + LOCK_TIMEOUT;
        let stdin = io::stdin();
        loop {
            match flock(&self.0, FlockOperation::NonBlockingLockExclusive) {
                Err(Errno::WOULDBLOCK | Errno::INTR) => {}
                locked => return Ok(locked.map(|()| true)?),
            }
            if Instant::now() > deadline {
                return Err(io::Error::other(
                    "another process has had its lock for 10 s: an earlier supervisor of dnsmasq may be stopped",
                ));
            }
            let has_command = poll_readable([stdin.as_fd()], Some(LOCK_RETRY_INTERVAL))? == [true];
            if has_command && read_command()?.is_none() {
                return Ok(false);
            }
        }
    }

    /// Writes the parameters. Init's process number stays: the init of a helper that was killed may still be ending.
    pub(super) fn write_params(&self, args: &[OsString]) -> io::Result<()> {
        let args: Vec<_> = args.iter().map(|arg| arg.as_bytes()).collect();
        let bytes = args.join(&0);
        self.0.write_all_at(&bytes, PID_LENGTH as u64)?;
        self.0.set_len((PID_LENGTH + bytes.len()) as u64)
    }

    pub(super) fn read_params(&self) -> io::Result<Vec<OsString>> {
        let (_, args) = self.read()?;
        let args = args.split(|&byte| byte == 0);
        Ok(args.map(|arg| OsStr::from_bytes(arg).to_owned()).collect())
    }

    pub(super) fn write_init_pid(&self, pid: u32) -> io::Result<()> {
        let text = format!("{pid:<PID_LENGTH$}");
        self.0.write_all_at(text.as_bytes(), 0)
    }

    /// The init that was started last; `None` if there was none.
    pub(super) fn read_init_pid(&self) -> io::Result<Option<Pid>> {
        let (pid, _) = self.read()?;
        let pid = String::from_utf8_lossy(&pid);
        let pid = pid.trim_matches(['\0', ' ']).parse();
        Ok(pid.ok().and_then(Pid::from_raw))
    }

    fn read(&self) -> io::Result<(Vec<u8>, Vec<u8>)> {
        let mut bytes = vec![0; usize::try_from(self.0.metadata()?.len()).unwrap_or(0)];
        self.0.read_exact_at(&mut bytes, 0)?;
        let (pid, args) = bytes.split_at_checked(PID_LENGTH).ok_or_else(invalid)?;
        Ok((pid.to_vec(), args.to_vec()))
    }
}

impl AsFd for LockFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_earlier_version_has_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("default.dhcp");
        std::fs::write(
            &path,
            b"4711            /usr/bin/x\0/run/leases\x00107\x00113",
        )
        .unwrap();

        let lock = LockFile::open(&path).unwrap();

        assert_eq!(lock.read_init_pid().unwrap(), Pid::from_raw(4711));
        let args = ["/usr/bin/x", "/run/leases", "107", "113"].map(OsString::from);
        assert_eq!(lock.read_params().unwrap(), args);
    }

    #[test]
    fn new_parameters_leave_the_number_of_the_earlier_init() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("default.dhcp");
        let lock = LockFile::open(&path).unwrap();
        lock.write_params(&["long", "parameters"].map(OsString::from))
            .unwrap();
        assert_eq!(lock.read_init_pid().unwrap(), None);
        lock.write_init_pid(4711).unwrap();

        let lock = LockFile::open(&path).unwrap();
        lock.write_params(&[OsString::from("short")]).unwrap();

        assert_eq!(lock.read_init_pid().unwrap(), Pid::from_raw(4711));
        assert_eq!(lock.read_params().unwrap(), [OsString::from("short")]);
    }
}
