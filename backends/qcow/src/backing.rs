//! Backing chains and external data files: the only place that opens files an image names, and only when asked to.

use std::fs::{File, OpenOptions as FileOptions};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::image::Image;
use crate::lock::{FileLock, Use};
use crate::options::{Backing, DataFile, Format, Locking, OpenOptions};
use crate::storage::{HostFile, Storage};

/// The files of a chain seen so far, by (device, inode).
type Seen = Vec<(u64, u64)>;

/// Opens an image file and what the options let it refer to.
pub(crate) fn open_top(path: &Path, options: &OpenOptions) -> Result<Image> {
    let file = open_host_file(path, options.writable)?;
    open_top_file(file, path, options)
}

/// As [`open_top`], from an open file.
pub(crate) fn open_top_file(file: File, path: &Path, options: &OpenOptions) -> Result<Image> {
    open_in_chain(file, path, options, &mut Seen::new())
}

/// As [`open_top`], from storage that is not a file; no locks.
pub(crate) fn open_storage(
    storage: Box<dyn Storage>,
    path: &Path,
    options: &OpenOptions,
) -> Result<Image> {
    check_options(options)?;
    let image = Image::assemble(storage, path, options, None)
        .map_err(|error| error.within(path.display()))?;
    attach(image, path, options, &mut Seen::new())
}

fn check_options(options: &OpenOptions) -> Result<()> {
    if options.writable && options.locking == Locking::Shared {
        return Err(Error::invalid(
            "an image can only be opened read-only with shared locking",
        ));
    }
    if options.writable && options.snapshot.is_some() {
        return Err(Error::invalid("a snapshot can only be opened read-only"));
    }
    Ok(())
}

fn open_host_file(path: &Path, writable: bool) -> Result<File> {
    FileOptions::new()
        .read(true)
        .write(writable)
        .open(path)
        .map_err(|error| Error::io(format!("cannot open {}", path.display()), error))
}

fn open_in_chain(file: File, path: &Path, options: &OpenOptions, seen: &mut Seen) -> Result<Image> {
    check_options(options)?;
    let metadata = file
        .metadata()
        .map_err(|error| Error::io(format!("{}: cannot stat", path.display()), error))?;
    if metadata.is_dir() {
        return Err(Error::invalid(format!(
            "{}: is a directory",
            path.display()
        )));
    }
    let id = (metadata.dev(), metadata.ino());
    if seen.contains(&id) {
        return Err(Error::new(
            ErrorKind::Backing,
            format!("{}: the backing chain loops", path.display()),
        ));
    }
    seen.push(id);
    if seen.len() > options.max_depth as usize {
        let message = format!(
            "{}: the backing chain has more than {} images",
            path.display(),
            options.max_depth
        );
        return Err(Error::new(ErrorKind::Backing, message));
    }
    let lock = lock(&file, path, options, seen.len() > 1)?;
    let storage = HostFile::new(file)
        .map_err(|error| Error::io(format!("{}: cannot stat", path.display()), error))?;
    let image = Image::assemble(Box::new(storage), path, options, lock)
        .map_err(|error| error.within(path.display()))?;
    attach(image, path, options, seen)
}

fn lock(
    file: &File,
    path: &Path,
    options: &OpenOptions,
    is_backing: bool,
) -> Result<Option<FileLock>> {
    let usage = match options.locking {
        Locking::Off => return Ok(None),
        Locking::Shared => Use::ReadShared,
        Locking::Exclusive if options.writable => Use::Write,
        // As QEMU's tools: a raw image may be read while it is written, there is no metadata to trip over.
        Locking::Exclusive if options.format == Format::Raw && !is_backing => Use::ReadShared,
        Locking::Exclusive => Use::Read,
    };
    FileLock::acquire(file, usage, path).map(Some)
}

/// Opens the data file and the backing file of `image` as far as the options allow.
fn attach(mut image: Image, path: &Path, options: &OpenOptions, seen: &mut Seen) -> Result<Image> {
    let references = image.references();
    if let (Some(_), DataFile::Use(storage)) = (&references.data_file, &options.data_file) {
        image.set_data_file(storage.clone(), path.to_path_buf(), None);
    } else if let Some(name) = references.data_file {
        let data_path = match &options.data_file {
            DataFile::Ignore | DataFile::Use(_) => None,
            DataFile::Open if name.is_empty() => {
                return Err(Error::invalid(format!(
                    "{}: the image needs a data file and names none",
                    path.display()
                )));
            }
            DataFile::Open => Some(resolve_data_file(path, &name)?),
            DataFile::Path(data_path) => Some(data_path.clone()),
        };
        if let Some(data_path) = data_path {
            attach_data_file(&mut image, data_path, options)?;
        }
    } else if let DataFile::Path(data_path) = &options.data_file {
        let message = format!(
            "{}: uses no external data file, so {} is of no use",
            path.display(),
            data_path.display()
        );
        return Err(Error::invalid(message));
    }
    match &options.backing {
        Backing::Ignore => {}
        Backing::Use(below) => image.set_backing(Some(below.clone())),
        Backing::Open => {
            if let Some(name) = references.backing {
                let below = open_backing(path, &name, references.backing_format, options, seen)?;
                image.set_backing(Some(Arc::new(below)));
            }
        }
    }
    Ok(image)
}

fn attach_data_file(image: &mut Image, path: PathBuf, options: &OpenOptions) -> Result<()> {
    let file = open_host_file(&path, options.writable)?;
    let lock = lock(&file, &path, options, true)?;
    let storage = HostFile::new(file)
        .map_err(|error| Error::io(format!("{}: cannot stat", path.display()), error))?;
    image.set_data_file(Arc::new(storage), path, lock);
    Ok(())
}

fn open_backing(
    path: &Path,
    name: &str,
    format: Option<String>,
    options: &OpenOptions,
    seen: &mut Seen,
) -> Result<Image> {
    let format = match format {
        Some(format) => format
            .parse::<Format>()
            .map_err(|error| error.within(format!("backing file {name}")))?,
        None => options.unformatted_backing.ok_or_else(|| {
            let message = format!(
                "{}: records no format for its backing file {name}, and it is not guessed",
                path.display()
            );
            Error::new(ErrorKind::Backing, message)
        })?,
    };
    let below = resolve(path, name)?;
    let data_file = if matches!(options.data_file, DataFile::Ignore | DataFile::Use(_)) {
        DataFile::Ignore
    } else {
        DataFile::Open
    };
    let below_options = OpenOptions {
        format,
        writable: false,
        snapshot: None,
        windows: Vec::new(),
        for_check: false,
        data_file,
        ..options.clone()
    };
    let file = open_host_file(&below, false)
        .map_err(|error| error.within(format!("backing file of {}", path.display())))?;
    open_in_chain(file, &below, &below_options, seen)
}

/// Where the name of an external data file leads. Unlike backing files, QEMU looks for it relative to the
/// working directory, and so must everybody who shares images with it.
pub(crate) fn resolve_data_file(path: &Path, name: &str) -> Result<PathBuf> {
    resolve(path, name)?;
    Ok(PathBuf::from(name.strip_prefix("file:").unwrap_or(name)))
}

/// The full name behind one recorded in the image `path`, as QEMU shows it: those of a protocol are full already.
pub(crate) fn full_name(path: &Path, name: &str) -> Option<PathBuf> {
    let of_protocol = name
        .find([':', '/'])
        .is_some_and(|at| name.as_bytes().get(at) == Some(&b':'));
    match of_protocol {
        true => Some(PathBuf::from(name)),
        false => resolve(path, name).ok(),
    }
}

/// Where a name recorded in the image `path` leads: relative names are relative to the image's folder.
///
/// # Errors
/// The name is of a protocol (`nbd:`, `json:`, …): an image must not be able to make this process open such things.
pub(crate) fn resolve(path: &Path, name: &str) -> Result<PathBuf> {
    // What stands behind `file:` is a plain name, whatever it looks like.
    let (plain, local) = match name.strip_prefix("file:") {
        Some(rest) => (rest, true),
        None => (name, false),
    };
    let before_slash = plain.split('/').next().unwrap_or("");
    if before_slash.contains(':') && !local {
        return Err(Error::unsupported(format!(
            "{}: refers to {name}, which is not a plain file name",
            path.display()
        )));
    }
    if plain.is_empty() || plain.contains('\0') {
        return Err(Error::new(
            ErrorKind::Backing,
            format!("{}: refers to a file with an empty name", path.display()),
        ));
    }
    Ok(path.parent().unwrap_or_else(|| Path::new("")).join(plain))
}
