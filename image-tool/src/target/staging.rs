//! Where a target is written until it is whole: in a file without a name, or where the file system cannot do that under another
//! name in the same folder.

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

use super::name::folder_of;
use super::unfinished;

/// A new file's mode, less the umask: what is on a disk is nobody's to change.
const MODE: u32 = 0o644;

/// The mode of a file under another name, which is to get that of the file it replaces.
const PRIVATE: u32 = 0o600;

/// So many names are tried: processes of other hosts and containers may have the same number.
const NAMES: u32 = 100;

/// As much of the name is kept: with what is added, a name is at most 255 bytes long.
const KEPT: usize = 200;

#[derive(Debug)]
pub(super) enum Staging {
    /// Without a name: what is not finished goes with the process.
    Unnamed(Arc<File>),
    /// Under another name.
    Beside(Arc<File>, PathBuf),
}

impl Staging {
    /// A file that can take the name of `name` in the end, be it in the place of `old`.
    ///
    /// # Errors
    /// When no file can be made in the folder.
    pub(super) fn new(name: &Path, old: Option<&Metadata>) -> io::Result<Self> {
        match unnamed(name, old) {
            Some(file) => Ok(Self::Unnamed(Arc::new(file))),
            None => {
                let mode = if old.is_some() { PRIVATE } else { MODE };
                beside(name, mode).map(|(file, staged)| Self::Beside(Arc::new(file), staged))
            }
        }
    }

    pub(super) fn file(&self) -> &Arc<File> {
        match self {
            Self::Unnamed(file) | Self::Beside(file, _) => file,
        }
    }

    /// The file is whole: gives it its name. What has that name is replaced, if it is there to be replaced.
    pub(super) fn take_name(&self, name: &Path, replaces: bool) -> io::Result<()> {
        let staged = match self {
            Self::Beside(_, staged) => staged.clone(),
            Self::Unnamed(file) => {
                // Never in the place of another file, which a link cannot take.
                if !replaces {
                    match link(file, name) {
                        Err(Errno::EXIST) => {}
                        done => return Ok(done?),
                    }
                }
                give_any_name(name, |staged| Ok(link(file, staged)?))?.1
            }
        };
        let renamed = fs::rename(&staged, name);
        if renamed.is_err() {
            // The error that led here is the one to report.
            let _ = fs::remove_file(&staged);
        }
        unfinished::finished(&staged);
        renamed
    }

    /// Removes what was not finished.
    pub(super) fn remove(&self) {
        if let Self::Beside(_, staged) = self {
            // The error that led here is the one to report.
            let _ = fs::remove_file(staged);
            unfinished::finished(staged);
        }
    }
}

/// Whether a file may be replaced by another one of the same name, as far as can be known without trying: not if it is a mount
/// point of its own, has other names, or lies in a folder in which only the owner may change a name.
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

/// A file without a name in the folder of `name`, if it can be given that name in the end, be it in the place of `old`.
fn unnamed(name: &Path, old: Option<&Metadata>) -> Option<File> {
    // It is to have the old one's owner, and who does not own a file may not give it names.
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
    // Its name is given through this one, which is not there without /proc.
    let seen = fs::metadata(link_to(&file)).ok()?;
    let itself = file.metadata().ok()?;
    ((seen.dev(), seen.ino()) == (itself.dev(), itself.ino())).then_some(file)
}

/// Where the kernel shows an open file.
fn link_to(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn link(file: &File, name: &Path) -> rustix::io::Result<()> {
    linkat(CWD, link_to(file), CWD, name, AtFlags::SYMLINK_FOLLOW)
}

fn beside(name: &Path, mode: u32) -> io::Result<(File, PathBuf)> {
    give_any_name(name, |staged| {
        File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(staged)
    })
}

/// Makes something under a name beside `name` that nobody uses.
fn give_any_name<T>(
    name: &Path,
    make: impl Fn(&Path) -> io::Result<T>,
) -> io::Result<(T, PathBuf)> {
    let mut number = 0;
    loop {
        let staged = staged_name(name, number);
        // Before it is there: a signal may come between the two.
        unfinished::staged(&staged);
        match make(&staged) {
            Ok(made) => return Ok((made, staged)),
            Err(error) => {
                unfinished::finished(&staged);
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
    let kept = bytes.get(..KEPT).unwrap_or(bytes);
    let mut staged = OsString::from(".");
    staged.push(OsStr::from_bytes(kept));
    staged.push(format!(".{}", std::process::id()));
    if number > 0 {
        staged.push(format!("-{number}"));
    }
    staged.push(".unfinished");
    name.with_file_name(staged)
}
