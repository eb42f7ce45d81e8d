//! Signals eventfds that a backend shares. The backend may have filled the counter and made the descriptor block, so a
//! plain write could wait for ever.

use std::io;
use std::os::fd::AsRawFd;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

/// Signals `eventfd`, unless its counter is full: then it is readable already.
pub(super) fn signal(eventfd: &EventFd) {
    if matches!(is_writable(eventfd), Ok(true)) {
        let _ = eventfd.write(1);
    }
}

fn is_writable(eventfd: &EventFd) -> io::Result<bool> {
    let epoll = Epoll::new()?;
    let event = EpollEvent::new(EventSet::OUT, 0);
    epoll.ctl(ControlOperation::Add, eventfd.as_raw_fd(), event)?;
    Ok(epoll.wait(0, &mut [EpollEvent::default()])? > 0)
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::EFD_CLOEXEC;

    use super::*;

    #[test]
    fn an_eventfd_that_is_full_and_blocks_is_left_alone() {
        let eventfd = EventFd::new(EFD_CLOEXEC).unwrap();
        signal(&eventfd);
        assert_eq!(eventfd.read().unwrap(), 1);
        eventfd.write(u64::MAX - 1).unwrap();
        signal(&eventfd);
        assert_eq!(eventfd.read().unwrap(), u64::MAX - 1);
    }
}
