//! Creating images.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::formats::entry;
use crate::formats::raw::allocate_first_block;
use crate::formats::references::resolve_data_file;
use crate::image::Image;
use crate::options::{CreateOptions, DataFile, Locking, OpenOptions};
use crate::storage::Storage;
use crate::storage::gate::open_or_make;
use crate::storage::host_file::HostFile;
use crate::storage::lock::{FileLock, Use};

/// Creates an image file. What was in the file is lost; if creating fails, a file that was not there before is removed
/// again.
///
/// # Errors
/// [`crate::ErrorKind::InvalidInput`] for options out of range or not to be combined, [`crate::ErrorKind::Locked`] if
/// the file is in use.
pub fn create(path: impl AsRef<Path>, options: &CreateOptions) -> Result<()> {
    let path = path.as_ref();
    (entry(options.format).check_create)(options)?;
    let existed = path.exists();
    let done = create_named(path, options);
    if done.is_err() && !existed {
        // The first error is the one to report.
        let _ = std::fs::remove_file(path);
    }
    done
}

fn create_named(path: &Path, options: &CreateOptions) -> Result<()> {
    let file = open_or_make(path)?;
    fill(&Arc::new(file), path, options)
}

/// Creates an image in an open file, which need not have a name yet; `path` is the one it goes by in messages, and
/// what the name of an external data file is relative to.
///
/// # Errors
/// As [`create`].
pub fn create_file(
    file: &Arc<File>,
    path: impl AsRef<Path>,
    options: &CreateOptions,
) -> Result<()> {
    (entry(options.format).check_create)(options)?;
    fill(file, path.as_ref(), options)
}

fn fill(file: &Arc<File>, path: &Path, options: &CreateOptions) -> Result<()> {
    let lock = FileLock::acquire(file, Use::Write, path)?;
    let storage = HostFile::new(file.clone()).map_err(|error| Error::io("cannot stat", error))?;
    let failed = |error| Error::io(format!("{}: cannot truncate", path.display()), error);
    // Not a file that is empty: ext4 takes what is truncated for a file that is replaced, and closing it would wait for
    // the medium.
    if storage.len().map_err(failed)? != 0 {
        storage.set_len(0).map_err(failed)?;
    }
    options.empty_file.prepare(file);
    let format = entry(options.format);
    let allocated = (format.create)(&storage, options)
        .and_then(|()| (format.allocate)(&storage, options))
        .map_err(|error| error.within(path.display()))?;
    if let Some(name) = &options.data_file {
        create_data_file(&resolve_data_file(path, name)?, options)?;
    }
    if allocated {
        return Ok(());
    }
    // The lock belongs to the open file, which both hold.
    drop((lock, storage));
    preallocate(file.clone(), path, options)
}

fn preallocate(file: Arc<File>, path: &Path, options: &CreateOptions) -> Result<()> {
    let data = if options.data_file.is_some() {
        DataFile::Open
    } else {
        DataFile::Ignore
    };
    let open = OpenOptions::new(options.format)
        .writable(true)
        .data_file(data)
        .locking(Locking::Exclusive);
    let image = Image::open_file(file, path, &open)?;
    image.preallocate(0, options.size, options.initial_preallocation())?;
    image.close()
}

/// Creates an image in storage of the caller's own, with nothing allocated.
pub fn create_in(storage: &dyn Storage, options: &CreateOptions) -> Result<()> {
    let format = entry(options.format);
    (format.check_create)(options)?;
    (format.create)(storage, options)
}

fn create_data_file(path: &Path, options: &CreateOptions) -> Result<()> {
    let failed = |error| Error::create(path, error);
    let file = Arc::new(open_or_make(path)?);
    let _lock = FileLock::acquire(&file, Use::Write, path)?;
    let storage = HostFile::new(file).map_err(failed)?;
    // What was in it is no part of the new disk, and would show in the raw view of it.
    storage.set_len(0).map_err(failed)?;
    options.empty_file.prepare(storage.file());
    storage.set_len(options.size).map_err(failed)?;
    // A data file is a raw image.
    allocate_first_block(&storage, options.size).map_err(failed)
}
