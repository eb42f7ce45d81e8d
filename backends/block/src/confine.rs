//! The system calls that the image needs, while it is opened and after.

use std::path::Path;

use bulkhead_daemon::Confinement;
use bulkhead_process::confine::CapabilitySet;

/// Each with its reason.
const SYSCALLS: &[libc::c_long] = &[
    // Data, straight from and to guest memory.
    libc::SYS_preadv,
    libc::SYS_pwritev,
    // The same by io_uring. No ring is made or changed any more, so neither io_uring_setup nor io_uring_register is
    // here.
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

/// What the program may do once it serves: no path and no capability, since every file is open.
pub(crate) fn confinement() -> Confinement {
    Confinement::new()
        .allow(SYSCALLS)
        // Release the locks when the image is closed.
        .allow_fcntls(&[libc::F_OFD_SETLK, libc::F_OFD_GETLK])
}

/// The system calls that are allowed in addition until the image is open.
const OPENING: &[libc::c_long] = &[
    // Open the image, its backing chain and its journal: follow links, and open files relative to open folders.
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_newfstatat,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_fstatfs,
    libc::SYS_getcwd,
    // Search for a journal whose name is not the image's present one.
    libc::SYS_getdents64,
    // realpath(3) checks by these that the part before a `..` is a folder.
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    // Check who owns the journal.
    libc::SYS_geteuid,
    libc::SYS_getuid,
    libc::SYS_getegid,
    libc::SYS_getgid,
    // Remove a journal that is not needed any more.
    libc::SYS_unlinkat,
    // Make the io_urings.
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_register,
];

/// What the program may do in addition until the image is open: use these folders, and the names in /proc of its open
/// files.
pub(crate) fn opening<'a>(folders: impl Iterator<Item = &'a Path>, writable: bool) -> Confinement {
    let confinement = Confinement::new()
        .allow(OPENING)
        // Root may serve images of other users.
        .keep_capabilities(CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH)
        .read_path("/proc/self/fd")
        // A journal records the boot id, to find out whether the host has restarted since.
        .read_path("/proc/sys/kernel/random/boot_id");
    folders.fold(confinement, |confinement, folder| match writable {
        true => confinement.write_path(folder),
        false => confinement.read_path(folder),
    })
}
