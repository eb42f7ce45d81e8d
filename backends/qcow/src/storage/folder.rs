//! Folders in which files may be opened, and the way to a file in them that leads nowhere else.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Error, Result};

/// The most symbolic links in one name; the kernel has the same limit.
const MAX_LINKS: usize = 40;
/// The longest name; the kernel has the same limit.
const MAX_NAME: usize = 4096;

/// An open folder, in which files may be opened. It stays the same folder, whatever happens to its name.
#[derive(Debug, Clone)]
pub struct Folder {
    /// Without symbolic links.
    path: PathBuf,
    /// As it was named, by which images may name it, too.
    alias: PathBuf,
    file: Arc<OwnedFd>,
}

impl Folder {
    /// Opens a folder.
    ///
    /// # Errors
    /// It is not there, or no folder.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let failed = |error| Error::open(path, error);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(CWD, path, flags, Mode::empty())
            .map_err(|error| failed(error.into()))?;
        Ok(Self {
            path: fs::canonicalize(path).map_err(failed)?,
            alias: std::path::absolute(path).map_err(failed)?,
            file: Arc::new(file),
        })
    }

    /// Opens the folder that the name of an image leads through. If the image is a symbolic link, this is the folder of
    /// the link: names in the image are relative to it.
    ///
    /// # Errors
    /// As [`Folder::open`].
    pub fn of_image(image: impl AsRef<Path>) -> Result<Self> {
        let parent = image.as_ref().parent();
        let parent = parent.filter(|parent| !parent.as_os_str().is_empty());
        Self::open(parent.unwrap_or(Path::new(".")))
    }

    /// Its path, without symbolic links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file in it, not opened, without following any link.
    pub(crate) fn find(&self, inside: &Path) -> io::Result<OwnedFd> {
        let mut found = self.file.try_clone()?;
        for component in inside.components() {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            found = rustix::fs::openat(&found, component.as_os_str(), flags, Mode::empty())?;
        }
        Ok(found)
    }

    /// Opens a file in it without following any link.
    pub(crate) fn open_inside(&self, inside: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        let parent = self.find(inside.parent().unwrap_or(Path::new("")))?;
        let name = inside.file_name().ok_or(Errno::ISDIR)?;
        let file = rustix::fs::openat(&parent, name, flags | OFlags::NOFOLLOW, Mode::empty());
        Ok(file?)
    }
}

impl AsFd for Folder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The folders in which files may be opened.
#[derive(Debug)]
pub(crate) struct Folders {
    folders: Vec<Folder>,
    /// Relative names are relative to this, unless it has been removed.
    working: Option<PathBuf>,
}

impl Folders {
    pub(crate) fn new(folders: Vec<Folder>) -> io::Result<Self> {
        let working = match std::env::current_dir() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            working => Some(working?),
        };
        Ok(Self { folders, working })
    }

    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        self.folders
            .iter()
            .map(|folder| folder.path.clone())
            .collect()
    }

    /// The folder a file is in and its name there, after all symbolic links; `None` if it is in none of the folders.
    ///
    /// Whoever can change the links meanwhile chooses the result, and still only among what is in the folders: the
    /// result is opened from the folder, without following links.
    pub(crate) fn find(&self, path: &Path) -> io::Result<Option<(&Folder, PathBuf)>> {
        let mut at = PathBuf::from("/");
        let mut left = Vec::new();
        let mut links = 0;
        let path = match &self.working {
            Some(working) => working.join(path),
            None if path.is_absolute() => path.to_owned(),
            None => return Err(io::ErrorKind::NotFound.into()),
        };
        push(&mut left, &path)?;
        while let Some(next) = left.pop() {
            if next == ".." {
                at.pop();
                continue;
            }
            let there = at.join(&next);
            if let Some(folder) = self.folders.iter().find(|folder| folder.alias == there) {
                at.clone_from(&folder.path);
                continue;
            }
            let Some(target) = self.link(&there)? else {
                at = there;
                continue;
            };
            links += 1;
            if links > MAX_LINKS {
                return Err(Errno::LOOP.into());
            }
            if target.is_absolute() {
                at = PathBuf::from("/");
            }
            push(&mut left, &target)?;
        }
        Ok(self.folder_of(&at))
    }

    /// Where a symbolic link leads; `None` if the file is none.
    fn link(&self, path: &Path) -> io::Result<Option<PathBuf>> {
        let Some((folder, inside)) = self.folder_of(path) else {
            // It may be hidden from this process, and is then taken for what its name says.
            return Ok(fs::read_link(path).ok());
        };
        let file = folder.find(&inside)?;
        if FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) != FileType::Symlink {
            return Ok(None);
        }
        let target = rustix::fs::readlinkat(&file, "", Vec::new())?;
        Ok(Some(OsString::from_vec(target.into_bytes()).into()))
    }

    fn folder_of(&self, path: &Path) -> Option<(&Folder, PathBuf)> {
        self.folders.iter().find_map(|folder| {
            let inside = path.strip_prefix(&folder.path).ok()?;
            Some((folder, inside.to_owned()))
        })
    }
}

/// Puts the components of a name on the stack of those to follow.
fn push(left: &mut Vec<OsString>, path: &Path) -> io::Result<()> {
    left.extend(
        path.components()
            .rev()
            .filter_map(|component| match component {
                Component::Normal(_) | Component::ParentDir => {
                    Some(component.as_os_str().to_owned())
                }
                _ => None,
            }),
    );
    match left.iter().map(|name| name.len() + 1).sum::<usize>() > MAX_NAME {
        true => Err(Errno::NAMETOOLONG.into()),
        false => Ok(()),
    }
}
