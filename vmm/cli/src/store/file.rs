//! The bytes of one definition: read with a bound, replaced as a whole.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, bail};

/// The most bytes of a definition. The largest part of one are texts of other programs.
pub(crate) const MAX_SIZE: u64 = 256 << 10;

/// The name of a file that is being written, in the folder of the definitions. The lock guards it.
const SPARE: &str = ".new";

/// Reads a file. `None`: there is none.
///
/// # Errors
/// When it cannot be read, is larger than a definition, or no file (a FIFO is not waited for).
pub(crate) fn read(path: &Path) -> anyhow::Result<Option<Vec<u8>>> {
    let shown = path.display();
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path);
    let file = match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink()) {
                bail!("the link {shown} leads nowhere: remove it");
            }
            return Ok(None);
        }
        opened => opened.with_context(|| format!("cannot open {shown}"))?,
    };
    if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        bail!("{shown} is not a file: remove it");
    }
    bounded(file, &shown.to_string()).map(Some)
}

/// Reads all of a file or pipe that is not too large for a definition.
///
/// # Errors
/// When it is too large, or reading fails.
pub(crate) fn bounded(from: impl Read, shown: &str) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = from.take(MAX_SIZE + 1).read_to_end(&mut bytes);
    read.with_context(|| format!("cannot read {shown}"))?;
    if bytes.len() as u64 > MAX_SIZE {
        bail!(
            "{shown} is larger than a definition can be, {} KiB",
            MAX_SIZE >> 10
        );
    }
    Ok(bytes)
}

/// Replaces or makes a file: whatever happens, it has the old bytes or the new ones.
///
/// # Errors
/// When that fails. The file is as it was.
pub(super) fn replace(path: &Path, bytes: &[u8], mode: u32) -> anyhow::Result<()> {
    let shown = path.display();
    let old = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        old => Some(old.with_context(|| format!("cannot look at {shown}"))?),
    };
    if let Some(old) = &old
        && !old.is_file()
    {
        match old.is_symlink() {
            true => bail!("{shown} is a link: change the file that it leads to"),
            false => bail!("{shown} is not a file: remove it"),
        }
    }
    let spare = path.with_file_name(SPARE);
    let written = write(&spare, bytes, old.as_ref(), mode).and_then(|()| fs::rename(&spare, path));
    if let Err(error) = written {
        let _ = fs::remove_file(&spare);
        return Err(error).with_context(|| format!("cannot write {shown}"));
    }
    sync_folder(path).with_context(|| format!("cannot write {shown}"))
}

fn write(spare: &Path, bytes: &[u8], old: Option<&fs::Metadata>, mode: u32) -> io::Result<()> {
    // A command that was killed may have left one.
    match fs::remove_file(spare) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(spare)?;
    file.write_all(bytes)?;
    if let Some(old) = old {
        let is_owner = |new: &fs::Metadata| (new.uid(), new.gid()) == (old.uid(), old.gid());
        if !is_owner(&file.metadata()?) {
            std::os::unix::fs::fchown(&file, Some(old.uid()), Some(old.gid()))?;
        }
    }
    // Whatever the umask is.
    let mode = old.map_or(mode, |old| old.mode() & 0o777);
    file.set_permissions(Permissions::from_mode(mode))?;
    file.sync_all()
}

/// Has the names in the folder of `path` on disk.
pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}
