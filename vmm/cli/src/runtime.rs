//! The runtime folder: `/run/bulkhead` for root, `$XDG_RUNTIME_DIR/bulkhead` for a user, with one folder per guest in it.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::fs::{FlockOperation, flock};

/// The folder all guests' folders and the helper's socket are in.
pub(crate) fn base() -> anyhow::Result<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/run/bulkhead"));
    }
    let user = std::env::var_os("XDG_RUNTIME_DIR").context(
        "XDG_RUNTIME_DIR is not set: log in properly, or set it to a folder of your own",
    )?;
    Ok(PathBuf::from(user).join("bulkhead"))
}

/// What `sockaddr_un` holds, less the zero at the end.
const LONGEST_SOCKET_PATH: usize = 107;
/// No socket in a guest's folder has a longer name.
const LONGEST_NAME: &str = "notify.sock";

/// A running guest's folder. It holds its name, and goes away with it.
#[derive(Debug)]
pub(crate) struct GuestFolder {
    path: PathBuf,
    // Locked as long as the guest runs.
    _lock: File,
}

impl GuestFolder {
    /// Takes the name. What a run that was killed has left under it is removed.
    pub(crate) fn claim(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        if path.join(LONGEST_NAME).as_os_str().len() > LONGEST_SOCKET_PATH {
            bail!(
                "the path {shown} is too long for the sockets in it, {LONGEST_SOCKET_PATH} bytes at most: \
                 choose a shorter name or a shorter $XDG_RUNTIME_DIR"
            );
        }
        DirBuilder::new()
            .mode(0o700)
            .recursive(true)
            .create(path)
            .with_context(|| format!("cannot create {shown}"))?;
        let lock = File::open(path).with_context(|| format!("cannot open {shown}"))?;
        if let Err(error) = flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            if error == rustix::io::Errno::WOULDBLOCK {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                bail!("guest '{name}' is running already");
            }
            return Err(error).with_context(|| format!("cannot lock {shown}"));
        }
        let folder = Self {
            path: path.to_owned(),
            _lock: lock,
        };
        folder
            .clear()
            .with_context(|| format!("cannot clear {shown}"))?;
        Ok(folder)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn clear(&self) -> io::Result<()> {
        for entry in std::fs::read_dir(&self.path)? {
            std::fs::remove_file(entry?.path())?;
        }
        Ok(())
    }
}

impl Drop for GuestFolder {
    fn drop(&mut self) {
        // What cannot be removed now is removed by the next run of this name.
        let _ = self.clear();
        let _ = std::fs::remove_dir(&self.path);
        if let Some(base) = self.path.parent() {
            // Fails, as it should, while other guests are in it.
            let _ = std::fs::remove_dir(base);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_can_be_claimed_once_at_a_time() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("bulkhead/one");
        let first = GuestFolder::claim(&path).unwrap();

        let second = GuestFolder::claim(&path).unwrap_err();
        assert_eq!(second.to_string(), "guest 'one' is running already");

        drop(first);
        assert!(!path.exists());
        assert!(GuestFolder::claim(&path).is_ok());
    }

    #[test]
    fn what_a_killed_run_left_is_removed() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("one");
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("vda.sock"), "").unwrap();

        let folder = GuestFolder::claim(&path).unwrap();

        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
