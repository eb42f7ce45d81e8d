//! What the name of a target leads to.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// As many symbolic links as the kernel follows.
const MAX_LINKS: usize = 40;

/// Where a chain of symbolic links ends.
#[derive(Debug)]
pub(super) enum End {
    /// A name in a folder, whether there is a file of that name or not.
    Name(PathBuf),
    /// A descriptor of a process (`/dev/stdout`, `/proc/self/fd/9`): a file that may have another name, or none.
    Descriptor(PathBuf),
}

impl End {
    pub(super) fn of(path: &Path) -> Self {
        let mut name = path.to_owned();
        for _ in 0..MAX_LINKS {
            let Ok(next) = fs::read_link(&name) else {
                break;
            };
            let folder = folder_of(&name);
            if is_on_procfs(folder) {
                // What the link says is not where it leads.
                return Self::Descriptor(name);
            }
            name = match folder == Path::new(".") {
                true => next,
                false => folder.join(next),
            };
        }
        Self::Name(name)
    }

    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Name(path) | Self::Descriptor(path) => path,
        }
    }
}

impl End {
    /// This process' own standard input, output or error, if that is what it leads to.
    pub(super) fn standard(&self) -> Option<io::Result<OwnedFd>> {
        let Self::Descriptor(path) = self else {
            return None;
        };
        let folder = fs::canonicalize(folder_of(path)).ok()?;
        if folder != fs::canonicalize("/proc/self/fd").ok()? {
            return None;
        }
        let file = match path.file_name()?.to_str()? {
            "0" => io::stdin().as_fd().try_clone_to_owned(),
            "1" => io::stdout().as_fd().try_clone_to_owned(),
            "2" => io::stderr().as_fd().try_clone_to_owned(),
            _ => return None,
        };
        Some(file)
    }
}

/// The folder a name is in.
pub(super) fn folder_of(name: &Path) -> &Path {
    match name.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

fn is_on_procfs(folder: &Path) -> bool {
    rustix::fs::statfs(folder).is_ok_and(|found| found.f_type == rustix::fs::PROC_SUPER_MAGIC)
}

/// Why no file can have this name, under which there is none: better reported now than when all is done and it is to take it.
pub(super) fn never_a_file(name: &Path, error: io::Error) -> Option<io::Error> {
    let bytes = name.as_os_str().as_bytes();
    if bytes.is_empty() || error.raw_os_error() != Some(libc::ENOENT) {
        return Some(error);
    }
    let is_folder = bytes.ends_with(b"/");
    is_folder.then(|| io::Error::from_raw_os_error(libc::EISDIR))
}
