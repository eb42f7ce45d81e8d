//! The confinement, which the tool enters when its files are open and before it reads what is in them.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use bulkhead_process::confine::{CapabilitySet, Confinement};

use crate::output::report;

/// System calls on open files, by purpose.
const OPEN_FILES: &[libc::c_long] = &[
    // data
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_copy_file_range,
    // durability
    libc::SYS_fdatasync,
    libc::SYS_fsync,
    // holes, sizes
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
    libc::SYS_statx,
    libc::SYS_fadvise64,
];

/// System calls that name a complete file, or remove an incomplete one.
const NAMES: &[libc::c_long] = &[
    libc::SYS_linkat,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
];

/// Confines the process to its open files; it can open no others, and rename and remove files only in `folders`. Where
/// the host does not support that (qemu-user, a container without seccomp), it prints a warning and the command goes
/// on.
pub(crate) fn enter(folders: &[PathBuf]) {
    let mut confinement = Confinement::new()
        .allow(OPEN_FILES)
        // Images are unlocked when they are closed.
        .allow_fcntls(&[libc::F_OFD_SETLK, libc::F_OFD_GETLK]);
    if !folders.is_empty() {
        confinement = confinement.allow(NAMES);
    }
    if folders.iter().any(|folder| is_of_others(folder)) {
        let needed = CapabilitySet::DAC_OVERRIDE | CapabilitySet::FOWNER;
        confinement = confinement.keep_capabilities(needed);
    }
    let confined = folders
        .iter()
        .fold(confinement, |confinement, folder| {
            confinement.write_path(folder)
        })
        .enter();
    if let Err(error) = confined {
        report::warning(format_args!("the process is not confined: {error}"));
    }
}

/// Whether root needs its capabilities to change names in the folder.
fn is_of_others(folder: &Path) -> bool {
    const WRITE_AND_SEARCH: u32 = 0o300;
    fs::metadata(folder).is_ok_and(|folder| {
        folder.uid() != rustix::process::geteuid().as_raw()
            || folder.mode() & WRITE_AND_SEARCH != WRITE_AND_SEARCH
    })
}
