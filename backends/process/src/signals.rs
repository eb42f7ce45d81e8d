//! SIGTERM, SIGINT and SIGHUP as a file descriptor, so that a program ends in order, from its loop.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// The signals that end a program.
const TERMINATION: [libc::c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// A signalfd: readable once a signal has come.
#[derive(Debug)]
pub struct SignalFd(OwnedFd);

/// Blocks SIGTERM, SIGINT and SIGHUP for this thread and those it starts, and returns a descriptor to poll for them.
/// Signals that were ignored when the program was started (`nohup`, a shell's background) stay ignored.
///
/// # Errors
/// When there is no descriptor left.
pub fn block_termination() -> io::Result<SignalFd> {
    block_unless_ignored(&TERMINATION)
}

/// As [`block`], for those of `signals` that were not ignored when the program was started.
///
/// # Errors
/// When a number is no signal's, or there is no descriptor left.
pub fn block_unless_ignored(signals: &[libc::c_int]) -> io::Result<SignalFd> {
    // A blocked signal is queued even if it is ignored. So an ignored signal must not be blocked.
    let heeded = signals.iter().copied();
    let heeded: Vec<_> = heeded.filter(|&signal| !is_ignored(signal)).collect();
    block(&heeded)
}

/// Whether the program ignores the signal, which it inherits from the program that started it (`nohup`).
pub fn is_ignored(signal: libc::c_int) -> bool {
    // SAFETY: sigaction(2) with no new action only fills `now`, which is plain data. Neither the standard library nor
    // rustix has it.
    unsafe {
        let mut now = std::mem::zeroed::<libc::sigaction>();
        libc::sigaction(signal, std::ptr::null(), &mut now) == 0
            && now.sa_sigaction == libc::SIG_IGN
    }
}

/// Lets through the signals that [`block_termination`] blocks, before that: what is started now is ended by them, also
/// where this program's parent has blocked them.
pub fn unblock_termination() {
    // SAFETY: the set is initialised by sigemptyset before it is read, and a thread's mask is its own. Neither the
    // standard library nor rustix has these calls.
    unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&mut set);
        for signal in TERMINATION {
            libc::sigaddset(&mut set, signal);
        }
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut());
    }
}

/// The signals as a program of ours wants them, whatever its parent has left to it. To be called first, and before
/// there is a second thread.
///
/// * SIGXFSZ is ignored: a write beyond the limit of file sizes (`ulimit -f`) fails with EFBIG then, instead of ending
///   the program.
/// * SIGCHLD is not ignored: a program that ignores it cannot learn how its children ended.
/// * None is blocked but those that [`block_termination`] takes: what a program starts would not heed them either.
pub fn prepare() {
    // SAFETY: no handler is installed; the kernel only stops or begins to deliver a signal. The set is initialised by
    // sigfillset before it is read. Neither the standard library nor rustix has these calls.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        libc::signal(libc::SIGCHLD, libc::SIG_DFL);
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigfillset(&mut set);
        for signal in TERMINATION {
            libc::sigdelset(&mut set, signal);
        }
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut());
    }
}

/// Does `write`, which a terminal cannot stop the process for (SIGTTOU) although it is in the background.
pub(crate) fn without_stop<R>(write: impl FnOnce() -> R) -> R {
    // SAFETY: both sets are initialised before they are read, and live until the last call returns; a thread's mask is
    // its own.
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
/// When a number is no signal's, or there is no descriptor left.
pub fn block(signals: &[libc::c_int]) -> io::Result<SignalFd> {
    // SAFETY: `set` is initialised by sigemptyset before anything reads it, and lives until the last call returns. The
    // calls are needed because neither the standard library nor rustix has them.
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
