//! Creating images.

use std::path::Path;

use crate::error::{Error, Result};
use crate::options::{CreateOptions, Format, Preallocation};
use crate::storage::{HostFile, Storage};

/// Creates an image file. What was in the file is lost; if creating fails, the file is removed again.
pub fn create(path: impl AsRef<Path>, options: &CreateOptions) -> Result<()> {
    let path = path.as_ref();
    let existed = path.exists();
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(|error| Error::io(format!("cannot create {}", path.display()), error))?;
    let done =
        crate::lock::FileLock::acquire(&file, crate::lock::Use::Write, path).and_then(|_lock| {
            let storage = HostFile::new(file).map_err(|error| Error::io("cannot stat", error))?;
            create_in(&storage, path, options).map_err(|error| error.within(path.display()))
        });
    if done.is_err() && !existed {
        // The first error is the one to report.
        let _ = std::fs::remove_file(path);
    }
    done
}

fn create_in(storage: &HostFile, path: &Path, options: &CreateOptions) -> Result<()> {
    let _ = path;
    match options.format {
        Format::Raw => {
            storage
                .set_len(0)
                .map_err(|error| Error::io("cannot truncate", error))?;
            storage
                .set_len(options.size)
                .map_err(|error| Error::io("cannot resize", error))?;
            preallocate_raw(storage, 0, options.size, options.preallocation)
        }
        Format::Qcow2 => Err(Error::unsupported("creating qcow2")),
    }
}

/// Reserves the space of a raw file from `start` to `end`.
pub(crate) fn preallocate_raw(
    storage: &dyn Storage,
    start: u64,
    end: u64,
    preallocation: Preallocation,
) -> Result<()> {
    if end <= start {
        return Ok(());
    }
    match preallocation {
        Preallocation::Off => Ok(()),
        Preallocation::Metadata => Err(Error::unsupported(
            "raw images have no metadata to preallocate",
        )),
        Preallocation::Falloc => storage
            .allocate(start, end - start)
            .map_err(|error| Error::io("cannot preallocate", error)),
        Preallocation::Full => {
            let zeroes = vec![0u8; 1 << 20];
            let mut at = start;
            while at < end {
                let len = (end - at).min(zeroes.len() as u64);
                storage
                    .write(at, &&zeroes[..], 0, len as usize)
                    .map_err(|error| Error::io("cannot preallocate", error))?;
                at += len;
            }
            Ok(())
        }
    }
}
