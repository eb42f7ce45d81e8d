//! What the image needs of the kernel once it is open.

use std::path::Path;

use bulkhead_daemon::Confinement;
use bulkhead_process::confine::CapabilitySet;

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

/// What it takes besides, until the image is open.
const OPENING: &[libc::c_long] = &[
    // The image, its backing chain and its journal: names are followed, and files opened by the folders that are open.
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_newfstatat,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_fstatfs,
    libc::SYS_getcwd,
    // A journal that has another name than the image has now.
    libc::SYS_getdents64,
    // realpath(3) asks so whether what is before a `..` is a folder.
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    // Whose journal it is.
    libc::SYS_geteuid,
    libc::SYS_getuid,
    libc::SYS_getegid,
    libc::SYS_getgid,
    // A journal that is not needed any more.
    libc::SYS_unlinkat,
    // The rings.
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_register,
];

/// What may be done until the image is open, and where: in these folders, and by the names that /proc has for open files.
pub(crate) fn opening<'a>(folders: impl Iterator<Item = &'a Path>, writable: bool) -> Confinement {
    let confinement = Confinement::new()
        .allow(OPENING)
        // Root serves images of others, of those that can be seen.
        .keep_capabilities(CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH)
        .read_path("/proc/self/fd")
        // By which a journal is known to be of this start of the host.
        .read_path("/proc/sys/kernel/random/boot_id");
    folders.fold(confinement, |confinement, folder| match writable {
        true => confinement.write_path(folder),
        false => confinement.read_path(folder),
    })
}
