//! SIGTERM, SIGINT and SIGHUP as a file descriptor: a program that is told to end does so from its loop, in order.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Readable once the program is told to end.
#[derive(Debug)]
pub struct SignalFd(OwnedFd);

/// Blocks SIGTERM, SIGINT and SIGHUP for this thread and those it starts, and gives them as a descriptor to poll. Those that were ignored
/// when the program was started (`nohup`, a shell's background) stay ignored.
///
/// # Errors
/// When the kernel has no descriptor to give.
pub fn block_termination() -> io::Result<SignalFd> {
    block_unless_ignored(&[libc::SIGTERM, libc::SIGINT, libc::SIGHUP])
}

/// As [`block`], for those of `signals` that were not ignored when the program was started.
///
/// # Errors
/// When a number is no signal's, or the kernel has no descriptor to give.
pub fn block_unless_ignored(signals: &[libc::c_int]) -> io::Result<SignalFd> {
    // A signal that is blocked is queued even if it is ignored: so it must not be blocked.
    let heeded = signals.iter().copied();
    let heeded: Vec<_> = heeded.filter(|&signal| !is_ignored(signal)).collect();
    block(&heeded)
}

/// Whether the program ignores the signal, as it does when the one that started it did (`nohup`).
pub fn is_ignored(signal: libc::c_int) -> bool {
    // SAFETY: sigaction(2) with no new action only fills `now`, which is plain data. Neither the standard library nor rustix has it.
    unsafe {
        let mut now = std::mem::zeroed::<libc::sigaction>();
        libc::sigaction(signal, std::ptr::null(), &mut now) == 0
            && now.sa_sigaction == libc::SIG_IGN
    }
}

/// Ignores SIGXFSZ: a write beyond the limit of file sizes (`ulimit -f`) fails with EFBIG then, instead of ending the program.
pub fn ignore_file_size_limit() {
    // SAFETY: no handler is installed; the kernel only stops delivering the signal. Neither the standard library nor rustix has it.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Does `write`, which a terminal cannot stop the process for (SIGTTOU) although it is in the background.
pub(crate) fn without_stop<R>(write: impl FnOnce() -> R) -> R {
    // SAFETY: both sets are initialised before they are read, and live until the last call returns; a thread's mask is its own.
    unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        let mut before = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGTTOU);
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, &mut before);
        let result = write();
        libc::pthread_sigmask(libc::SIG_SETMASK, &before, std::ptr::null_mut());
        result
    }
}

/// Blocks `signals` for this thread and those it starts, and gives them as a descriptor to poll.
///
/// # Errors
/// When a number is no signal's, or the kernel has no descriptor to give.
pub fn block(signals: &[libc::c_int]) -> io::Result<SignalFd> {
    // SAFETY: `set` is initialised by sigemptyset before anything reads it, and lives until the last call returns. The calls are
    // needed because neither the standard library nor rustix has them.
    let fd = unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&mut set);
        for &signal in signals {
            if libc::sigaddset(&mut set, signal) != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        let blocked = libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        if blocked != 0 {
            return Err(io::Error::from_raw_os_error(blocked));
        }
        libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given this descriptor to us, and nobody else knows it.
    Ok(SignalFd(unsafe { OwnedFd::from_raw_fd(fd) }))
}

impl SignalFd {
    /// The next signal that has arrived, if any. Never waits.
    ///
    /// # Errors
    /// When the descriptor cannot be read.
    pub fn take(&self) -> io::Result<Option<libc::c_int>> {
        let mut record = [0u8; size_of::<libc::signalfd_siginfo>()];
        match rustix::io::read(&self.0, &mut record) {
            Ok(length) if length >= 4 => {
                let [a, b, c, d, ..] = record;
                Ok(Some(libc::c_int::from_ne_bytes([a, b, c, d])))
            }
            Ok(_) | Err(rustix::io::Errno::AGAIN) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for SignalFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for SignalFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_that_was_sent_is_taken_once() {
        let signals = block(&[libc::SIGUSR2]).unwrap();
        assert_eq!(signals.take().unwrap(), None);

        // SAFETY: raising a signal that this thread has blocked only marks it pending.
        unsafe { libc::raise(libc::SIGUSR2) };

        assert_eq!(signals.take().unwrap(), Some(libc::SIGUSR2));
        assert_eq!(signals.take().unwrap(), None);
    }
}
