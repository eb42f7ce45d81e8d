//! The system calls of the serve loop, beyond those of every program.

use bulkhead_process::confine::Confinement;

/// The reason for each.
const SYSCALLS: &[libc::c_long] = &[
    // A frontend connects, with --persist the next one too.
    libc::SYS_accept4,
    // The in-flight area is made, sized and sealed.
    libc::SYS_memfd_create,
    libc::SYS_ftruncate,
    // The sizes of the files that memory is mapped from.
    libc::SYS_statx,
];

pub(crate) fn allow(confinement: Confinement) -> Confinement {
    confinement.allow(SYSCALLS)
}

/// What it takes to remove the socket file at the end.
pub(crate) fn allow_removal(confinement: Confinement, folder: &std::path::Path) -> Confinement {
    confinement
        .allow(&[libc::SYS_unlink, libc::SYS_unlinkat, libc::SYS_lstat])
        .remove_below(folder)
}
