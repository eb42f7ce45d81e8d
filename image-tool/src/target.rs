//! The file a command creates. It is written without a name, or where the file system cannot do that under another one in
//! the same folder, and takes its own name once it is whole, so that no failure, signal or crash leaves something
//! there that opens as an image and is not one.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Result, anyhow};
use qcow::{CreateOptions, Format, Image, OpenOptions};
use rustix::fs::{AtFlags, CWD, linkat};
use rustix::io::Errno;

use crate::reason::{os, reason};

/// Files to remove when the process is told to end.
static UNFINISHED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// A file that is being created.
#[derive(Debug)]
pub(crate) struct Target {
    /// The name it is to have.
    name: PathBuf,
    staging: Staging,
    /// The file of that name until now, locked against its other users.
    replaced: Option<Image>,
}

#[derive(Debug)]
enum Staging {
    /// Without a name: what is not finished goes with the process.
    Unnamed(File),
    /// Under another name.
    Beside(PathBuf),
    /// Under its own: a device, a file with several names, a folder that cannot be written.
    InPlace,
    /// It is done.
    Finished,
}

impl Target {
    /// Prepares to create `path`. What is there already is checked and locked, and not changed yet.
    pub(crate) fn prepare(path: &Path) -> Result<Self> {
        let name = fs::canonicalize(path).unwrap_or_else(|_| end_of_links(path));
        let cannot = |error: std::io::Error| {
            anyhow!("Could not create '{}': {}", path.display(), os(&error))
        };
        let metadata = match fs::metadata(&name) {
            Ok(metadata) => metadata,
            Err(error) => {
                if let Some(error) = never_a_file(&name, error) {
                    return Err(cannot(error));
                }
                let staging = match unnamed(&name, None) {
                    Some(file) => Staging::Unnamed(file),
                    None => beside(&name, path)?,
                };
                return Ok(Self {
                    name,
                    staging,
                    replaced: None,
                });
            }
        };
        let file = File::options()
            .read(true)
            .write(true)
            .open(&name)
            .map_err(cannot)?;
        let kind = metadata.file_type();
        if !kind.is_file() {
            if !kind.is_block_device() && !kind.is_char_device() {
                return Err(anyhow!(
                    "'file' driver requires '{}' to be a regular file",
                    path.display()
                ));
            }
            return Ok(Self {
                name,
                staging: Staging::InPlace,
                replaced: None,
            });
        }
        let lock = OpenOptions::new(Format::Raw).writable(true);
        let replaced = Image::open_file(file, path, &lock)
            .map_err(|error| anyhow!("{}", reason(&error, path)))?;
        let staging = if metadata.nlink() > 1 {
            Staging::InPlace
        } else if let Some(file) = unnamed(&name, Some(&metadata)) {
            Staging::Unnamed(file)
        } else {
            beside(&name, path).unwrap_or(Staging::InPlace)
        };
        // Writing in place takes the lock by itself.
        let replaced = Some(replaced).filter(|_| !matches!(staging, Staging::InPlace));
        Ok(Self {
            name,
            staging,
            replaced,
        })
    }

    /// Makes the image.
    pub(crate) fn create(&self, options: &CreateOptions) -> qcow::Result<()> {
        match &self.staging {
            Staging::Unnamed(file) => qcow::create_file(file, &self.name, options),
            _ => qcow::create(self.path(), options),
        }
    }

    /// The file, if it cannot be opened by its path.
    pub(crate) fn open_file(&self) -> Result<Option<Arc<File>>> {
        match &self.staging {
            Staging::Unnamed(file) => Ok(Some(Arc::new(file.try_clone()?))),
            _ => Ok(None),
        }
    }

    /// Where to write, and what names in the image are relative to.
    pub(crate) fn path(&self) -> &Path {
        match &self.staging {
            Staging::Beside(staged) => staged,
            Staging::Unnamed(_) | Staging::InPlace | Staging::Finished => &self.name,
        }
    }

    /// Whether nobody finds the file by its name until it is whole.
    pub(crate) fn is_hidden(&self) -> bool {
        matches!(self.staging, Staging::Unnamed(_) | Staging::Beside(_))
    }

    /// Whether it is a device, which holds what was on it before.
    pub(crate) fn is_device(&self) -> bool {
        fs::metadata(&self.name).is_ok_and(|metadata| !metadata.is_file())
    }

    /// The folder in which names will be changed, for the confinement.
    pub(crate) fn folder(&self) -> PathBuf {
        match self.name.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
            _ => PathBuf::from("."),
        }
    }

    /// The file is whole: gives it its name.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.take_name().map_err(|error| {
            anyhow!("Could not create '{}': {}", self.name.display(), os(&error))
        })?;
        self.staging = Staging::Finished;
        Ok(())
    }

    fn take_name(&self) -> std::io::Result<()> {
        let staged = match &self.staging {
            Staging::Beside(staged) => staged.clone(),
            Staging::Unnamed(file) => {
                // Never in the place of another file, which a link cannot take.
                if self.replaced.is_none() {
                    match link(file, &self.name) {
                        Err(Errno::EXIST) => {}
                        done => return Ok(done?),
                    }
                }
                let staged = staged_name(&self.name);
                remember(&staged);
                link(file, &staged).inspect_err(|_| forget(&staged))?;
                staged
            }
            Staging::InPlace | Staging::Finished => return Ok(()),
        };
        let renamed = fs::rename(&staged, &self.name);
        if renamed.is_err() && matches!(self.staging, Staging::Unnamed(_)) {
            // The error that led here is the one to report.
            let _ = fs::remove_file(&staged);
        }
        forget(&staged);
        renamed
    }

    /// Gives the new file the mode and owner of the one it replaces. Before confinement: it opens the file once more.
    pub(crate) fn inherit(&self) -> Result<()> {
        let new = match (&self.staging, &self.replaced) {
            (Staging::Beside(staged), Some(_)) => File::options().write(true).open(staged)?,
            (Staging::Unnamed(file), Some(_)) => file.try_clone()?,
            _ => return Ok(()),
        };
        let old = fs::metadata(&self.name)?;
        new.set_permissions(old.permissions())?;
        let present = new.metadata()?;
        if (present.uid(), present.gid()) != (old.uid(), old.gid()) {
            // An ordinary user cannot give files away; then the file is theirs, as after `cp`.
            let _ = fchown(&new, Some(old.uid()), Some(old.gid()));
        }
        Ok(())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        match &self.staging {
            Staging::Beside(staged) => {
                // The error that led here is the one to report.
                let _ = fs::remove_file(staged);
                forget(staged);
            }
            Staging::Unnamed(_) | Staging::InPlace | Staging::Finished => {}
        }
    }
}

/// The name a chain of symbolic links leads to, where there is no file yet.
fn end_of_links(path: &Path) -> PathBuf {
    // As many as the kernel follows.
    const MAX_LINKS: usize = 40;
    let mut name = path.to_owned();
    for _ in 0..MAX_LINKS {
        let Ok(next) = fs::read_link(&name) else {
            break;
        };
        name = name.parent().unwrap_or(Path::new("")).join(next);
    }
    name
}

/// Why no file can have this name, under which there is none: better told now than when all is done and it is to take it.
fn never_a_file(name: &Path, error: std::io::Error) -> Option<std::io::Error> {
    let bytes = name.as_os_str().as_bytes();
    if bytes.is_empty() || error.raw_os_error() != Some(libc::ENOENT) {
        return Some(error);
    }
    let is_folder = bytes.ends_with(b"/");
    is_folder.then(|| std::io::Error::from_raw_os_error(libc::EISDIR))
}

/// A file without a name in the folder of `name`, if it can be given that name in the end, be it in the place of `old`.
fn unnamed(name: &Path, old: Option<&fs::Metadata>) -> Option<File> {
    // It is to have the old one's owner, and who does not own a file may not give it names.
    if old.is_some_and(|old| old.uid() != rustix::process::geteuid().as_raw()) {
        return None;
    }
    let folder = name
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let file = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_TMPFILE)
        .open(folder.unwrap_or(Path::new(".")))
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

/// A name beside `name` that nobody uses.
fn staged_name(name: &Path) -> PathBuf {
    let file_name = name
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    // A name is at most 255 bytes long.
    let kept: String = file_name.chars().take(60).collect();
    let mut staged = name.to_owned();
    staged.set_file_name(format!(".{kept}.{}.unfinished", std::process::id()));
    staged
}

fn beside(name: &Path, shown: &Path) -> Result<Staging> {
    let staged = staged_name(name);
    File::options()
        .write(true)
        .create_new(true)
        .open(&staged)
        .map_err(|error| anyhow!("Could not create '{}': {}", shown.display(), os(&error)))?;
    remember(&staged);
    Ok(Staging::Beside(staged))
}

fn remember(staged: &Path) {
    UNFINISHED
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(staged.to_owned());
}

fn forget(staged: &Path) {
    UNFINISHED
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .retain(|path| path != staged);
}

/// Removes what is unfinished, because the process is about to end.
pub(crate) fn abandon() {
    for path in UNFINISHED
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .drain(..)
    {
        let _ = fs::remove_file(path);
    }
}
