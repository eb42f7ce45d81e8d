//! What the tool gives up once its files are open and before it works on what is in them.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use bulkhead_process::confine::{CapabilitySet, Confinement};

use crate::output::report;

/// Reading and writing files that are open, with the reason for each group.
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

/// Giving the finished file its name, or removing it.
const NAMES: &[libc::c_long] = &[
    libc::SYS_linkat,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
];

/// Confines the process to the files it has open; in `folders` it may still rename and remove. No file can be opened
/// any more. Where the host does not allow that (an emulator of single programs, a container without seccomp), a warning says so,
/// and the work on the images that were named goes on.
pub(crate) fn enter(folders: &[PathBuf]) {
    let mut confinement = Confinement::new()
        .allow(OPEN_FILES)
        // The locks of images that are closed.
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

/// Whether root may change names in the folder only by its capabilities.
fn is_of_others(folder: &Path) -> bool {
    const WRITE_AND_SEARCH: u32 = 0o300;
    fs::metadata(folder).is_ok_and(|folder| {
        folder.uid() != rustix::process::geteuid().as_raw()
            || folder.mode() & WRITE_AND_SEARCH != WRITE_AND_SEARCH
    })
}
