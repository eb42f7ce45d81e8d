//! What the helper may still do once it serves: interfaces and rules through sockets that are open, TAP devices, its
//! own folder.

use std::path::Path;

use bulkhead_process::confine::{CapabilitySet, ConfineError, Confinement};

/// System calls beyond those of every program, and what for.
const CALLS: &[libc::c_long] = &[
    // Clients.
    libc::SYS_accept4,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    // Netlink peeks at the size of what is there.
    libc::SYS_recvfrom,
    // /dev/net/tun, and what is in the state folder at the end.
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

/// The requests that make a TAP device.
const IOCTLS: &[u64] = &[libc::TUNSETIFF, libc::TUNSETVNETHDRSZ, libc::TUNSETPERSIST];

/// Confines the process, which sees these two files and nothing else of the host's.
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
