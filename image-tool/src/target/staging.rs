//! The staged file: a target without a name (O_TMPFILE), or where the file system does not support that, with a
//! temporary name in the same folder.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, linkat, statx};
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, capabilities};

use super::incomplete;
use super::name::folder_of;

/// Mode of a new file, before the umask: others must not write a disk.
const MODE: u32 = 0o644;

/// Mode of a file with a temporary name, until it gets the mode of the file that it replaces.
const PRIVATE: u32 = 0o600;

/// Temporary names to try: processes of other hosts and containers may have the same process id.
const NAMES: u32 = 100;

/// Bytes of the name that the temporary name keeps, so that it stays within 255 bytes.
const NAME_PART: usize = 200;

#[derive(Debug)]
pub(super) enum Staging {
    /// Without a name: the kernel removes it with the process.
    Unnamed(Arc<File>),
    /// With a temporary name.
    Temporary(Arc<File>, PathBuf),
}

impl Staging {
    /// A file that can take the name `name` when it is complete, and replace `old` if there is one.
    ///
    /// # Errors
    /// When no file can be created in the folder.
    pub(super) fn new(name: &Path, old: Option<&Metadata>) -> io::Result<Self> {
        match unnamed(name, old) {
            Some(file) => Ok(Self::Unnamed(Arc::new(file))),
            None => {
                let mode = if old.is_some() { PRIVATE } else { MODE };
                beside(name, mode).map(|(file, staged)| Self::Temporary(Arc::new(file), staged))
            }
        }
    }

    pub(super) fn file(&self) -> &Arc<File> {
        match self {
            Self::Unnamed(file) | Self::Temporary(file, _) => file,
        }
    }

    /// Gives the complete file its name, and replaces the file of that name if `replaces` is set or there is one.
    pub(super) fn take_name(&self, name: &Path, replaces: bool) -> io::Result<()> {
        let staged = match self {
            Self::Temporary(_, staged) => staged.clone(),
            Self::Unnamed(file) => {
                // A link cannot replace a file.
                if !replaces {
                    match link(file, name) {
                        Err(Errno::EXIST) => {}
                        done => return Ok(done?),
                    }
                }
                with_temporary_name(name, |staged| Ok(link(file, staged)?))?.1
            }
        };
        let renamed = fs::rename(&staged, name);
        if renamed.is_err() {
            // The first error is the one to report.
            let _ = fs::remove_file(&staged);
        }
        incomplete::remove(&staged);
        renamed
    }

    /// Removes an incomplete file.
    pub(super) fn remove(&self) {
        if let Self::Temporary(_, staged) = self {
            // The first error is the one to report.
            let _ = fs::remove_file(staged);
            incomplete::remove(staged);
        }
    }
}

/// Whether a file can be replaced by renaming, as far as its metadata show: not a mount point, not one of several hard
/// links, and not in a sticky folder of another user.
pub(super) fn is_replaceable(file: &File, metadata: &Metadata, name: &Path) -> bool {
    metadata.nlink() == 1 && !is_mount_point(file) && may_rename(metadata, name)
}

fn is_mount_point(file: &File) -> bool {
    statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)
        .is_ok_and(|found| found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

fn may_rename(file: &Metadata, name: &Path) -> bool {
    const STICKY: u32 = 0o1000;
    let Ok(folder) = fs::metadata(folder_of(name)) else {
        return false;
    };
    let user = rustix::process::geteuid().as_raw();
    let is_owner = user == folder.uid() || user == file.uid();
    folder.mode() & STICKY == 0
        || is_owner
        || capabilities(None).is_ok_and(|held| held.effective.contains(CapabilitySet::FOWNER))
}

/// A file without a name in the folder of `name`, if it can later be linked there.
fn unnamed(name: &Path, old: Option<&Metadata>) -> Option<File> {
    // The file gets the owner of `old`, and only a file's owner may link it.
    if old.is_some_and(|old| old.uid() != rustix::process::geteuid().as_raw()) {
        return None;
    }
    let file = File::options()
        .read(true)
        .write(true)
        .mode(MODE)
        .custom_flags(libc::O_TMPFILE)
        .open(folder_of(name))
        .ok()?;
    // Linking needs the name in /proc, which may not be mounted.
    let seen = fs::metadata(link_to(&file)).ok()?;
    let itself = file.metadata().ok()?;
    ((seen.dev(), seen.ino()) == (itself.dev(), itself.ino())).then_some(file)
}

/// The name of an open file in /proc.
fn link_to(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn link(file: &File, name: &Path) -> rustix::io::Result<()> {
    linkat(CWD, link_to(file), CWD, name, AtFlags::SYMLINK_FOLLOW)
}

fn beside(name: &Path, mode: u32) -> io::Result<(File, PathBuf)> {
    with_temporary_name(name, |staged| {
        File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(staged)
    })
}

/// Calls `make` with unused temporary names beside `name` until it succeeds.
fn with_temporary_name<T>(
    name: &Path,
    make: impl Fn(&Path) -> io::Result<T>,
) -> io::Result<(T, PathBuf)> {
    let mut number = 0;
    loop {
        let staged = staged_name(name, number);
        // Registered before it exists, since a signal may arrive in between.
        incomplete::add_staged(&staged);
        match make(&staged) {
            Ok(made) => return Ok((made, staged)),
            Err(error) => {
                incomplete::remove(&staged);
                number += 1;
                if error.kind() != io::ErrorKind::AlreadyExists || number == NAMES {
                    return Err(error);
                }
            }
        }
    }
}

fn staged_name(name: &Path, number: u32) -> PathBuf {
    let bytes = name.file_name().unwrap_or_default().as_bytes();
    let kept = bytes.get(..NAME_PART).unwrap_or(bytes);
    let mut staged = OsString::from(".");
    staged.push(OsStr::from_bytes(kept));
    staged.push(format!(".{}", std::process::id()));
    if number > 0 {
        staged.push(format!("-{number}"));
    }
    staged.push(".unfinished");
    name.with_file_name(staged)
}
