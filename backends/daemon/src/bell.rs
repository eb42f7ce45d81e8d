//! What one thread wakes another one by.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};

/// An eventfd: readable once somebody has rung it, until it is told to be quiet.
#[derive(Debug)]
pub struct Bell(OwnedFd);

impl Bell {
    /// A quiet one.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn new() -> io::Result<Self> {
        Ok(Self(eventfd(
            0,
            EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK,
        )?))
    }

    /// Whoever waits for it wakes.
    pub fn ring(&self) {
        // A counter that is full has been heard of already.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// It was heard.
    pub fn quiet(&self) {
        // It counts; that there is nothing to read is no error.
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    fn is_heard(bell: &Bell) -> bool {
        let mut fds = [PollFd::new(bell, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).unwrap() == 1
    }

    #[test]
    fn it_is_heard_from_the_first_ring_until_it_is_told_to_be_quiet() {
        let bell = Bell::new().unwrap();
        bell.quiet();
        assert!(!is_heard(&bell));
        bell.ring();
        bell.ring();
        assert!(is_heard(&bell));
        bell.quiet();
        assert!(!is_heard(&bell));
    }
}
