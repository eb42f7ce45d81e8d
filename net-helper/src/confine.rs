//! The confinement of a helper that serves: it changes interfaces and rules through open sockets, creates TAP devices,
//! and uses its state folder.

use std::path::Path;

use bulkhead_process::confine::{CapabilitySet, ConfineError, Confinement};

/// System calls beyond those that every program needs.
const CALLS: &[libc::c_long] = &[
    // Clients.
    libc::SYS_accept4,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    // Netlink messages, whose size is peeked at first.
    libc::SYS_recvfrom,
    // /dev/net/tun, and removing the contents of the state folder.
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_getdents64,
    libc::SYS_statx,
    libc::SYS_newfstatat,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    libc::SYS_rmdir,
    // Waiting for the supervisors of dnsmasq to end.
    libc::SYS_wait4,
    libc::SYS_waitid,
];

/// The requests that create a TAP device.
const IOCTLS: &[u64] = &[libc::TUNSETIFF, libc::TUNSETVNETHDRSZ, libc::TUNSETPERSIST];

/// Confines the process: of the host's files it sees only /dev/net/tun and the state folder.
pub(crate) fn enter(state: &Path) -> Result<(), ConfineError> {
    Confinement::new()
        .isolate_but_network()
        .allow(CALLS)
        .allow_ioctls(IOCTLS)
        .write_path("/dev/net/tun")
        .write_path(state)
        .keep_capabilities(CapabilitySet::NET_ADMIN)
        .enter()
}
