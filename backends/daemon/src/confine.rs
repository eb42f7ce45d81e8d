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

/// The in-flight area is sealed, and a frontend's memory is asked for its seals.
const FCNTLS: &[libc::c_int] = &[libc::F_ADD_SEALS, libc::F_GET_SEALS];

pub(crate) fn allow(confinement: Confinement) -> Confinement {
    confinement
        .isolate()
        .allow(SYSCALLS)
        .allow_fcntls(FCNTLS)
        // Guest memory.
        .allow_file_mappings()
}
