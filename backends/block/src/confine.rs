//! What the image needs of the kernel once it is open.

use bulkhead_daemon::Confinement;

/// The reason for each.
const SYSCALLS: &[libc::c_long] = &[
    // Data, straight from and to guest memory.
    libc::SYS_preadv,
    libc::SYS_pwritev,
    // The same by io_uring. Rings are not made or changed any more: no io_uring_setup, no io_uring_register.
    libc::SYS_io_uring_enter,
    // Metadata of the image.
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    // Flush.
    libc::SYS_fdatasync,
    libc::SYS_fsync,
    // Discard and write zeroes; a qcow2 file grows.
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
];

/// No path and no capability: every file is open already.
pub(crate) fn confinement() -> Confinement {
    Confinement::new()
        .allow(SYSCALLS)
        // The locks of an image that is closed.
        .allow_fcntls(&[libc::F_OFD_SETLK, libc::F_OFD_GETLK])
}
