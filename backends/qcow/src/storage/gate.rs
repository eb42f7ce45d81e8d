//! The gate every file passes when it is opened: by its type, and by its folder if it is an image that names it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{CWD, FileType, Mode, OFlags};

use crate::error::{Denied, Error, FileKind, Result};
use crate::storage::folder::{Folder, Folders};

/// Which files may be opened because an image names them: its backing file, its external data file, and what those name
/// in turn.
///
/// Wherever they are, only regular files and block devices are opened, and no open waits for the other end of a FIFO.
/// Writing is covered, too: an external data file is opened for writing only where it is allowed.
///
/// Only what lies beside the image or in `/srv/base`:
///
/// ```no_run
/// use qcow::{AllowedFiles, Folder, Format, Image, OpenOptions};
///
/// # fn main() -> qcow::Result<()> {
/// let allowed = AllowedFiles::beneath([
///     Folder::of_image("/var/lib/images/disk.qcow2")?,
///     Folder::open("/srv/base")?,
/// ])?;
/// // The folders are open: from here on the process may see nothing but them.
/// let options = OpenOptions::new(Format::Qcow2)
///     .writable(true)
///     .follow_references()
///     .allowed_files(allowed);
/// let image = Image::open("/var/lib/images/disk.qcow2", &options)?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default)]
pub struct AllowedFiles {
    /// `None`: wherever they are.
    beneath: Option<Arc<Folders>>,
}

impl AllowedFiles {
    /// Files anywhere: only their type counts. This is what qemu-img does.
    pub fn anywhere() -> Self {
        Self::default()
    }

    /// Only files in these folders and the folders in them. Symbolic links are followed as long as they lead to such
    /// files: what counts is the file that is opened in the end, which is found step by step from the open folder,
    /// without links. Relative names are taken from the working directory of now.
    ///
    /// # Errors
    /// The working directory is not known.
    pub fn beneath(folders: impl IntoIterator<Item = Folder>) -> Result<Self> {
        let folders = Folders::new(folders.into_iter().collect())
            .map_err(|error| Error::io("cannot find the working directory", error))?;
        Ok(Self {
            beneath: Some(Arc::new(folders)),
        })
    }

    /// Opens a file that an image names.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotAllowed`] if it is of another type or not in the folders, [`crate::ErrorKind::Io`] if it
    /// cannot be opened.
    pub fn open(&self, path: impl AsRef<Path>, writable: bool) -> Result<File> {
        let path = path.as_ref();
        let Some(folders) = &self.beneath else {
            return open_file(path, writable);
        };
        let found = folders
            .find(path)
            .map_err(|error| Error::open(path, error))?;
        let Some((folder, inside)) = found else {
            return Err(Error::denied_by(Denied::Outside {
                file: path.to_owned(),
                named_by: None,
                allowed: folders.paths(),
            }));
        };
        check_type(
            path,
            &folder
                .find(&inside)
                .map_err(|error| Error::open(path, error))?,
        )?;
        let file = folder
            .open_inside(&inside, flags(writable))
            .map_err(|error| Error::open(path, error))?;
        admit(path, file)
    }
}

/// Opens a file that the user names, if it is a regular file or a block device, and without waiting for anything.
///
/// # Errors
/// [`crate::ErrorKind::NotAllowed`] if it is of another type, [`crate::ErrorKind::Io`] if it cannot be opened.
pub fn open_file(path: impl AsRef<Path>, writable: bool) -> Result<File> {
    let path = path.as_ref();
    let failed = |error: rustix::io::Errno| Error::open(path, error.into());
    // Opening some devices does something, so the type is looked at before.
    let seen = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    check_type(path, &seen.map_err(failed)?)?;
    let file = rustix::fs::openat(CWD, path, flags(writable), Mode::empty());
    admit(path, file.map_err(failed)?)
}

/// Opens the file of an image that is created, which is made if it is not there.
pub(crate) fn open_or_make(path: &Path) -> Result<File> {
    // Less the umask: what is on a disk is nobody else's to change.
    const MODE: Mode = Mode::from_raw_mode(0o644);
    let failed = |error: rustix::io::Errno| Error::create(path, error.into());
    if let Ok(seen) = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
        check_type(path, &seen)?;
    }
    let file = rustix::fs::openat(CWD, path, flags(true) | OFlags::CREATE, MODE);
    admit(path, file.map_err(failed)?)
}

fn flags(writable: bool) -> OFlags {
    let access = match writable {
        true => OFlags::RDWR,
        false => OFlags::RDONLY,
    };
    access | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC
}

/// Lets an open file through if its type is right. It is then like any other: some file systems would refuse io_uring's
/// waiting reads of a file that is not to block.
fn admit(path: &Path, file: OwnedFd) -> Result<File> {
    check_type(path, &file)?;
    if let Ok(flags) = rustix::fs::fcntl_getfl(&file) {
        // Those file systems do not refuse it.
        let _ = rustix::fs::fcntl_setfl(&file, flags - OFlags::NONBLOCK);
    }
    Ok(file.into())
}

/// Refuses a file that cannot hold an image.
pub(crate) fn check_type(path: &Path, file: &impl AsFd) -> Result<()> {
    let stat = rustix::fs::fstat(file).map_err(|error| {
        Error::io(
            format!("{}: cannot stat", path.display()),
            io::Error::from(error),
        )
    })?;
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile if is_made_up(file) => FileKind::Kernel,
        FileType::RegularFile | FileType::BlockDevice => return Ok(()),
        FileType::Directory => FileKind::Directory,
        FileType::Fifo => FileKind::Fifo,
        FileType::Socket => FileKind::Socket,
        FileType::CharacterDevice => FileKind::CharacterDevice,
        FileType::Symlink | FileType::Unknown => FileKind::Other,
    };
    Err(Error::denied_by(Denied::Type {
        file: path.to_owned(),
        kind,
        named_by: None,
    }))
}

/// Whether the kernel makes up the content as it is read, and waits for there to be some as it pleases.
fn is_made_up(file: &impl AsFd) -> bool {
    /// `PROC_SUPER_MAGIC`, `SYSFS_MAGIC`, `DEBUGFS_MAGIC` and `TRACEFS_MAGIC` of statfs(2).
    const FILE_SYSTEMS: [u32; 4] = [0x9fa0, 0x6265_6572, 0x6462_6720, 0x7472_6163];
    rustix::fs::fstatfs(file).is_ok_and(|found| FILE_SYSTEMS.contains(&(found.f_type as u32)))
}
