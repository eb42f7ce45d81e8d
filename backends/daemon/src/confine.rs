//! The system calls of the serve loop, beyond those of every program.

use bulkhead_process::confine::Confinement;

/// Each with its reason.
const SYSCALLS: &[libc::c_long] = &[
    // Accept a frontend, with --persist further ones.
    libc::SYS_accept4,
    // Make, size and seal the in-flight area.
    libc::SYS_memfd_create,
    libc::SYS_ftruncate,
    // Get the sizes of the files that memory is mapped from.
    libc::SYS_statx,
];

/// Seal the in-flight area, and get the seals of a frontend's memory.
const FCNTLS: &[libc::c_int] = &[libc::F_ADD_SEALS, libc::F_GET_SEALS];

pub(crate) fn allow(confinement: Confinement) -> Confinement {
    confinement
        .isolate()
        .allow(SYSCALLS)
        .allow_fcntls(FCNTLS)
        // Map guest memory.
        .allow_file_mappings()
}
