//! SIGTERM, SIGINT and SIGHUP as a file descriptor: a program that is told to end does so from its loop, in order.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Readable once the program is told to end.
#[derive(Debug)]
pub struct SignalFd(OwnedFd);

/// Blocks SIGTERM, SIGINT and SIGHUP for this thread and those it starts, and gives them as a descriptor to poll.
///
/// # Errors
/// When the kernel has no descriptor to give.
pub fn block_termination() -> io::Result<SignalFd> {
    block(&[libc::SIGTERM, libc::SIGINT, libc::SIGHUP])
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
