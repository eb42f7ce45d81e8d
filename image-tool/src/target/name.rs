//! Resolving the name of a target: symbolic links, and names of open descriptors.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The kernel's limit of symbolic links in a path.
const MAX_LINKS: usize = 40;

/// The end of a chain of symbolic links.
#[derive(Debug)]
pub(super) enum End {
    /// A name in a folder, whether the file exists or not.
    Name(PathBuf),
    /// A descriptor of a process (`/dev/stdout`, `/proc/self/fd/9`), whose file may have another name, or none.
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
                // The text of such a link is not a path to the file.
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
    /// This process's own standard input, output or error, if the name leads to one of them.
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

/// The folder that holds the name.
pub(super) fn folder_of(name: &Path) -> &Path {
    match name.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

fn is_on_procfs(folder: &Path) -> bool {
    rustix::fs::statfs(folder).is_ok_and(|found| found.f_type == rustix::fs::PROC_SUPER_MAGIC)
}

/// The error for a missing file whose name can never be created, so that it is reported before the copy and not after
/// it.
pub(super) fn never_a_file(name: &Path, error: io::Error) -> Option<io::Error> {
    let bytes = name.as_os_str().as_bytes();
    if bytes.is_empty() || error.raw_os_error() != Some(libc::ENOENT) {
        return Some(error);
    }
    let is_folder = bytes.ends_with(b"/");
    is_folder.then(|| io::Error::from_raw_os_error(libc::EISDIR))
}
