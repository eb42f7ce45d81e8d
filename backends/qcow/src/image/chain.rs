//! Opens images with their backing chains and external data files. Files that an image names are opened here only, and
//! only if the options say so.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use qcow_format::Format;

use crate::error::{Error, ErrorKind, Result};
use crate::formats::qcow2::journal::file::{self as journal_file, Access, Beside, JournalFile};
use crate::formats::qcow2::pending_session;
use crate::formats::references::{resolve, resolve_data_file};
use crate::image::Image;
use crate::options::{Backing, DataFile, Journal, Locking, OpenOptions};
use crate::storage::Storage;
use crate::storage::gate::{check_type, open_file};
use crate::storage::host_file::HostFile;
use crate::storage::lock::{FileLock, Use};
use crate::storage::visited::{ChainError, VisitedFiles};

/// Opening.
impl Image {
    /// Opens `path` as the options say, and what they let it refer to.
    ///
    /// # Errors
    /// The file is missing, locked, not of the declared format, damaged, or uses an unknown feature; the message names
    /// it.
    pub fn open(path: impl AsRef<Path>, options: &OpenOptions) -> Result<Self> {
        let file = open_file(path.as_ref(), options.writable)?;
        Self::open_file(file, path, options)
    }

    /// Opens an image from an open file; `path` is its name in messages, and what relative backing names are relative
    /// to.
    ///
    /// # Errors
    /// As [`Image::open`].
    pub fn open_file(
        file: impl Into<Arc<File>>,
        path: impl AsRef<Path>,
        options: &OpenOptions,
    ) -> Result<Self> {
        open_in_chain(
            file.into(),
            path.as_ref(),
            options,
            &mut VisitedFiles::new(options.max_depth),
        )
    }

    /// Opens an image from storage of the caller's own; no locks are taken.
    ///
    /// # Errors
    /// As [`Image::open`].
    pub fn open_storage(
        storage: Box<dyn Storage>,
        path: impl AsRef<Path>,
        options: &OpenOptions,
    ) -> Result<Self> {
        let path = path.as_ref();
        check_options(options)?;
        let used = match &options.journal {
            Journal::Use(journal) => {
                Some(JournalFile::in_storage(journal.clone(), storage.identity()))
            }
            _ => None,
        };
        let journal = Some(Beside::of(storage.identity(), used));
        let image = Self::assemble(storage, path, options, (None, journal))
            .map_err(|error| error.within(path.display()))?;
        attach(
            image,
            path,
            options,
            &mut VisitedFiles::new(options.max_depth),
        )
    }
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

fn open_in_chain(
    file: Arc<File>,
    path: &Path,
    options: &OpenOptions,
    visited: &mut VisitedFiles,
) -> Result<Image> {
    check_options(options)?;
    check_type(path, &file)?;
    visited.add(&file).map_err(|error| {
        let path = path.display();
        match error {
            ChainError::Io(error) => Error::io(format!("{path}: cannot stat"), error),
            fault => Error::new(ErrorKind::Backing, format!("{path}: {fault}")),
        }
    })?;
    let lock = lock(&file, path, options, visited.is_in_backing())?;
    let journal = journal(&file, path, options)?;
    let storage = HostFile::new(file)
        .map_err(|error| Error::io(format!("{}: cannot stat", path.display()), error))?;
    let image = Image::assemble(Box::new(storage), path, options, (lock, journal))
        .map_err(|error| error.within(path.display()))?;
    attach(image, path, options, visited)
}

fn lock(
    file: &Arc<File>,
    path: &Path,
    options: &OpenOptions,
    is_backing: bool,
) -> Result<Option<FileLock>> {
    let usage = match options.locking {
        Locking::Off => return Ok(None),
        Locking::Shared => Use::ReadShared,
        Locking::Exclusive | Locking::NoWriters if options.writable => Use::Write,
        // As QEMU's tools: a raw image may be read while it is written, there is no metadata to trip over.
        Locking::Exclusive if !options.format.has_metadata() && !is_backing => Use::ReadShared,
        Locking::Exclusive | Locking::NoWriters => Use::Read,
    };
    FileLock::acquire(file, usage, path).map(Some)
}

/// What was found beside an image that is locked; `None` if nobody is to look.
fn journal(file: &Arc<File>, path: &Path, options: &OpenOptions) -> Result<Option<Beside>> {
    if !options.format.has_journal() || options.for_info {
        return Ok(None);
    }
    // What is being written now is not to be had otherwise.
    if !options.writable && FileLock::has_writer(file) {
        return Ok(None);
    }
    let metadata = file
        .metadata()
        .map_err(|error| Error::io(format!("{}: cannot stat", path.display()), error))?;
    let image = journal_file::identity(&metadata);
    let access = match (&options.journal, options.writable) {
        (Journal::Use(journal), _) => {
            let used = JournalFile::in_storage(journal.clone(), image);
            return Ok(Some(Beside::of(image, Some(used))));
        }
        _ if !options.windows.is_empty() => return Ok(Some(Beside::of(image, None))),
        (Journal::Keep, true) => Access::Create,
        (_, true) => Access::Write,
        (_, false) => Access::Read,
    };
    let session = pending_session(file)
        .map_err(|error| Error::io(format!("{}: cannot read", path.display()), error))?;
    if access != Access::Create && session.is_none() {
        return Ok(Some(Beside::of(image, None)));
    }
    Ok(Some(Beside {
        image,
        found: JournalFile::beside(file, path, access, session.as_ref()),
    }))
}

/// Opens the data file and the backing file of `image` as far as the options allow.
fn attach(
    mut image: Image,
    path: &Path,
    options: &OpenOptions,
    visited: &mut VisitedFiles,
) -> Result<Image> {
    let references = image.references();
    if let (Some(_), DataFile::Use(storage)) = (&references.data_file, &options.data_file) {
        image.set_data_file(storage.clone(), path.to_path_buf(), None);
    } else if let Some(name) = references.data_file {
        let data_file = match &options.data_file {
            DataFile::Ignore | DataFile::Use(_) => None,
            DataFile::Open if name.is_empty() => {
                return Err(Error::invalid(format!(
                    "{}: the image needs a data file and names none",
                    path.display()
                )));
            }
            DataFile::Open => {
                let data_path = resolve_data_file(path, &name)?;
                let file = options.allowed_files.open(&data_path, options.writable);
                Some((file.map_err(|error| error.named_by(path))?, data_path))
            }
            DataFile::Path(data_path) => {
                Some((open_file(data_path, options.writable)?, data_path.clone()))
            }
        };
        if let Some((file, data_path)) = data_file {
            let is_own = visited.is_last(&file);
            if is_own.map_err(|error| {
                Error::io(format!("{}: cannot stat", data_path.display()), error)
            })? {
                return Err(Error::invalid(format!(
                    "{}: is its own data file",
                    path.display()
                )));
            }
            attach_data_file(&mut image, file, data_path, options)?;
        }
    } else if let DataFile::Path(_) = &options.data_file {
        let message = format!(
            "{}: 'data-file' can only be set for images with an external data file",
            path.display()
        );
        return Err(Error::invalid(message));
    }
    match &options.backing {
        Backing::Ignore => {}
        Backing::Open => {
            if let Some(name) = references.backing {
                let backing =
                    open_backing(path, &name, references.backing_format, options, visited)?;
                image = image.over(Arc::new(backing));
            }
        }
    }
    Ok(image)
}

fn attach_data_file(
    image: &mut Image,
    file: File,
    path: PathBuf,
    options: &OpenOptions,
) -> Result<()> {
    let file = Arc::new(file);
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
    visited: &mut VisitedFiles,
) -> Result<Image> {
    let format = match format {
        Some(format) => format
            .parse::<Format>()
            .map_err(|unknown| Error::unsupported(format!("backing file {name}: {unknown}")))?,
        None => options.unformatted_backing.ok_or_else(|| {
            let message = format!(
                "{}: records no format for its backing file {name}, and it is not guessed",
                path.display()
            );
            Error::new(ErrorKind::Backing, message)
        })?,
    };
    let backing = resolve(path, name)?;
    let data_file = if matches!(options.data_file, DataFile::Ignore | DataFile::Use(_)) {
        DataFile::Ignore
    } else {
        DataFile::Open
    };
    let backing_options = OpenOptions {
        format,
        writable: false,
        snapshot: None,
        windows: Vec::new(),
        for_check: false,
        journal: Journal::Replay,
        data_file,
        ..options.clone()
    };
    let file = options
        .allowed_files
        .open(&backing, false)
        .map_err(|error| {
            if error.kind() == ErrorKind::NotAllowed {
                return error.named_by(path);
            }
            error.within(format!("backing file of {}", path.display()))
        })?;
    open_in_chain(file.into(), &backing, &backing_options, visited)
}
