//! Descriptors that this process was started with and knows by number.

use std::os::fd::{OwnedFd, RawFd};

use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

/// Duplicates a descriptor. `OwnedFd::from_raw_fd` would need `unsafe`; the kernel looks the number up instead.
pub(crate) fn duplicate(number: RawFd) -> rustix::io::Result<OwnedFd> {
    let own = pidfd_open(getpid(), PidfdFlags::empty())?;
    pidfd_getfd(own, number, PidfdGetfdFlags::empty())
}
