//! The file a command creates. It is written under another name in the same folder and takes its own name once it is
//! whole, so that no failure, signal or crash leaves something there that opens as an image and is not one.

use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, MetadataExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Result, anyhow};
use qcow::{Format, Image, OpenOptions};

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
            Err(error) if error.raw_os_error() == Some(libc::ELOOP) => return Err(cannot(error)),
            Err(_) => {
                let staging = beside(&name, path)?;
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
        let staging = if metadata.nlink() == 1 {
            beside(&name, path)
        } else {
            Ok(Staging::InPlace)
        };
        match staging {
            Ok(Staging::Beside(staged)) => Ok(Self {
                name,
                staging: Staging::Beside(staged),
                replaced: Some(replaced),
            }),
            // Writing in place takes the lock by itself.
            _ => Ok(Self {
                name,
                staging: Staging::InPlace,
                replaced: None,
            }),
        }
    }

    /// Where to write.
    pub(crate) fn path(&self) -> &Path {
        match &self.staging {
            Staging::Beside(staged) => staged,
            Staging::InPlace | Staging::Finished => &self.name,
        }
    }

    /// Whether the file has another name until it is whole.
    pub(crate) fn is_hidden(&self) -> bool {
        matches!(self.staging, Staging::Beside(_))
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
        if let Staging::Beside(staged) = &self.staging {
            fs::rename(staged, &self.name).map_err(|error| {
                anyhow!("Could not create '{}': {}", self.name.display(), os(&error))
            })?;
            forget(staged);
        }
        self.staging = Staging::Finished;
        Ok(())
    }

    /// Gives the new file the mode and owner of the one it replaces. Before confinement: it opens the file once more.
    pub(crate) fn inherit(&self) -> Result<()> {
        let (Staging::Beside(staged), Some(_)) = (&self.staging, &self.replaced) else {
            return Ok(());
        };
        let old = fs::metadata(&self.name)?;
        let new = File::options().write(true).open(staged)?;
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
            Staging::InPlace | Staging::Finished => {}
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

/// A name beside `name` that nobody uses.
fn beside(name: &Path, shown: &Path) -> Result<Staging> {
    let file_name = name
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    // A name is at most 255 bytes long.
    let kept: String = file_name.chars().take(60).collect();
    let mut staged = name.to_owned();
    staged.set_file_name(format!(".{kept}.{}.unfinished", std::process::id()));
    File::options()
        .write(true)
        .create_new(true)
        .open(&staged)
        .map_err(|error| anyhow!("Could not create '{}': {}", shown.display(), os(&error)))?;
    UNFINISHED
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(staged.clone());
    Ok(Staging::Beside(staged))
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
