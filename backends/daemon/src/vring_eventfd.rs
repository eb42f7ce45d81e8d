//! The eventfds that the frontend sends for a ring: kick, call and err. (vhost-user, SET_VRING_KICK, SET_VRING_CALL,
//! SET_VRING_ERR)
//!
//! The frontend may send any descriptor, and may change its flags at any time: `O_NONBLOCK` too. So only eventfds are
//! taken, and a full one is not written to, since the write would wait. If the frontend fills it between the check and
//! the write, the [watchdog](crate::watchdog) interrupts the write.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, FileType, OFlags, StatxFlags, statx};
use rustix::io::Errno;

use crate::descriptors::Descriptors;
use crate::watchdog;

#[derive(Debug)]
pub(crate) struct VringEventFd(OwnedFd);

impl VringEventFd {
    /// Takes `fd` if it is an eventfd; else closes it and returns `None`.
    pub(crate) fn new(fd: OwnedFd) -> Option<Self> {
        if !is_eventfd(&fd) {
            drop(Descriptors::from(fd));
            return None;
        }
        if let Ok(flags) = rustix::fs::fcntl_getfl(&fd) {
            // Unless the frontend clears the flag, no write waits.
            let _ = rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK);
        }
        Some(Self(fd))
    }

    /// Adds one to the counter. A full counter is left alone: it is signalled already. Returns `false` if the frontend
    /// made the write wait.
    pub(crate) fn signal(&self) -> bool {
        if !has_room(&self.0) {
            return true;
        }
        let written = watchdog::interruptible(|| rustix::io::write(&self.0, &1u64.to_ne_bytes()));
        written != Err(Errno::INTR)
    }
}

impl AsFd for VringEventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn has_room(fd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::OUT)];
    match poll(&mut fds, Some(&Timespec::default())) {
        Ok(_) => fds[0].revents().contains(PollFlags::OUT),
        Err(_) => false,
    }
}

/// Whether `fd` is an eventfd. A confined process has no /proc to look it up in, so this checks two properties that
/// only eventfds have together: the inode has no type (it is "anonymous"), and write(2) reads the caller's bytes.
/// Neither check can wait.
fn is_eventfd(fd: &OwnedFd) -> bool {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let is_anonymous = statx(fd, c"", flags, StatxFlags::TYPE).is_ok_and(|stat| {
        FileType::from_raw_mode(stat.stx_mode.into()) == FileType::from_raw_mode(0)
    });
    is_anonymous && reads_what_it_writes(fd)
}

fn reads_what_it_writes(fd: &OwnedFd) -> bool {
    // SAFETY: the kernel checks the address and fails with EFAULT; nothing is read or written. The safe call takes no
    // bad address.
    let written = unsafe { libc::write(fd.as_raw_fd(), std::ptr::null(), size_of::<u64>()) };
    written < 0 && std::io::Error::last_os_error().raw_os_error() == Some(libc::EFAULT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, epoll, eventfd};
    use rustix::fs::MemfdFlags;
    use rustix::pipe::pipe;
    use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};
    use std::os::unix::net::UnixStream;

    #[test]
    fn only_eventfds_are_taken() {
        let flags = [
            EventfdFlags::empty(),
            EventfdFlags::SEMAPHORE,
            EventfdFlags::NONBLOCK,
        ];
        for flags in flags {
            let fd = eventfd(0, flags).unwrap();
            let count = fd.try_clone().unwrap();
            assert!(VringEventFd::new(fd).is_some());
            rustix::io::read(&count, &mut [0; 8]).expect_err("the question counts");
        }
        let (stream, _other) = UnixStream::pair().unwrap();
        let (read, write) = pipe().unwrap();
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::empty()).unwrap();
        let inotify = rustix::fs::inotify::init(rustix::fs::inotify::CreateFlags::empty()).unwrap();
        let others: Vec<OwnedFd> = vec![
            stream.into(),
            read,
            write,
            timer,
            inotify,
            epoll::create(epoll::CreateFlags::empty()).unwrap(),
            rustix::fs::memfd_create("x", MemfdFlags::empty()).unwrap(),
            tempfile::tempfile().unwrap().into(),
            std::fs::File::open("/dev/null").unwrap().into(),
            std::fs::File::open("/").unwrap().into(),
        ];
        for fd in others {
            let what = format!("{fd:?}");
            assert!(VringEventFd::new(fd).is_none(), "{what}");
        }
    }

    #[test]
    fn a_full_counter_that_blocks_is_not_waited_for() {
        let fd = eventfd(0, EventfdFlags::empty()).unwrap();
        let theirs = fd.try_clone().unwrap();
        let event = VringEventFd::new(fd).unwrap();
        rustix::io::write(&theirs, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        rustix::fs::fcntl_setfl(&theirs, OFlags::RDWR).unwrap();
        assert!(event.signal());

        let mut count = [0; 8];
        rustix::io::read(&theirs, &mut count).unwrap();
        assert!(event.signal());
        rustix::io::read(&theirs, &mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), 1);
    }
}
