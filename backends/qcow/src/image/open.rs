//! Opens images with their external data files, and with the backing chains that they record. Files that an image names
//! are opened only if the options say so.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use qcow_format::Format;

use crate::error::{Error, ErrorKind, Result};
use crate::formats::qcow2::journal::file::{self as journal_file, Access, Beside, JournalFile};
use crate::formats::qcow2::pending_session;
use crate::formats::references::{resolve, resolve_data_file};
use crate::image::Image;
use crate::image::chain::{Chain, Content, LinkFile, Place, RecordedBacking, Walk};
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
        check_options(options)?;
        let (file, mut top) = (file.into(), Link::new(path.as_ref(), options));
        check_type(&top.path, &file)?;
        let mut chain = AsRecorded(options.max_depth);
        let mut walk = Walk::new(&mut chain);
        walk.add(&file, &top)?;
        walk.open_in(Place::File(file), &mut top)
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
        check_options(options)?;
        let mut top = Link::new(path.as_ref(), options);
        let mut chain = AsRecorded(options.max_depth);
        Walk::new(&mut chain).open_in(Place::Storage(storage), &mut top)
    }

    /// Opens the image in an open file or storage, without the one it stands on.
    pub(super) fn open_alone(
        place: Place,
        path: &Path,
        options: &OpenOptions,
        visited: &VisitedFiles,
    ) -> Result<Self> {
        let (storage, lock, journal) = match place {
            Place::File(file) => {
                check_type(path, &file)?;
                let lock = lock(&file, path, options)?;
                let journal = journal(&file, path, options)?;
                let storage = HostFile::new(file).map_err(|error| {
                    Error::io(format!("{}: cannot stat", path.display()), error)
                })?;
                (Box::new(storage) as Box<dyn Storage>, lock, journal)
            }
            Place::Storage(storage) => {
                let used = match &options.journal {
                    Journal::Use(journal) => {
                        Some(JournalFile::in_storage(journal.clone(), storage.identity()))
                    }
                    _ => None,
                };
                let journal = Beside::of(storage.identity(), used);
                (storage, None, Some(journal))
            }
        };
        let mut image = Self::assemble(storage, path, options, (lock, journal))
            .map_err(|error| error.within(path.display()))?;
        attach_data_file(&mut image, path, options, visited)?;
        Ok(image)
    }
}

/// The chain that the images themselves record.
struct AsRecorded(u32);

/// An image of that chain.
struct Link {
    path: PathBuf,
    options: OpenOptions,
    /// The image that names this one, unless the caller does.
    named_by: Option<PathBuf>,
}

impl Link {
    fn new(path: &Path, options: &OpenOptions) -> Self {
        Self {
            path: path.to_path_buf(),
            options: options.clone(),
            named_by: None,
        }
    }
}

impl Chain for AsRecorded {
    type Link = Link;
    type Error = Error;

    fn max_depth(&self) -> u32 {
        self.0
    }

    fn path<'a>(&self, link: &'a Link) -> &'a Path {
        &link.path
    }

    fn file(&mut self, link: &mut Link) -> Result<LinkFile<Link>> {
        let file = link.options.allowed_files.open(&link.path, false);
        let file = file.map_err(|error| match &link.named_by {
            Some(image) if error.kind() == ErrorKind::NotAllowed => error.named_by(image),
            Some(image) => error.within(format!("backing file of {}", image.display())),
            None => error,
        })?;
        Ok(LinkFile::File(file.into()))
    }

    fn options(&mut self, link: &mut Link, _content: &Content<'_>) -> Result<OpenOptions> {
        Ok(link.options.clone())
    }

    fn backing(
        &mut self,
        link: &mut Link,
        _image: &Image,
        recorded: Option<RecordedBacking>,
    ) -> Result<Option<Link>> {
        match (&link.options.backing, recorded) {
            (Backing::Open, Some(recorded)) => recorded_backing(link, &recorded).map(Some),
            _ => Ok(None),
        }
    }

    fn refused(&self, link: &Link, why: ChainError) -> Error {
        let path = link.path.display();
        match why {
            ChainError::Io(error) => Error::io(format!("{path}: cannot stat"), error),
            fault => Error::new(ErrorKind::Backing, format!("{path}: {fault}")),
        }
    }

    fn failed(&self, _link: &Link, error: Error) -> Error {
        error
    }

    fn backing_failed(&self, _link: &Link, error: Error) -> Error {
        error
    }
}

fn recorded_backing(link: &Link, recorded: &RecordedBacking) -> Result<Link> {
    let RecordedBacking { name, format } = recorded;
    let options = &link.options;
    let format = match format {
        Some(format) => format
            .parse::<Format>()
            .map_err(|unknown| Error::unsupported(format!("backing file {name}: {unknown}")))?,
        None => options.unformatted_backing.ok_or_else(|| {
            let message = format!(
                "{}: records no format for its backing file {name}, and it is not guessed",
                link.path.display()
            );
            Error::new(ErrorKind::Backing, message)
        })?,
    };
    let data_file = match options.data_file {
        DataFile::Ignore | DataFile::Use(_) => DataFile::Ignore,
        DataFile::Open | DataFile::Path(_) => DataFile::Open,
    };
    let locking = match options.locking {
        // Nobody may write what an image stands on, not even if it is a raw image.
        Locking::Exclusive => Locking::NoWriters,
        other => other,
    };
    Ok(Link {
        path: resolve(&link.path, name)?,
        options: OpenOptions {
            format,
            writable: false,
            snapshot: None,
            windows: Vec::new(),
            for_check: false,
            journal: Journal::Replay,
            data_file,
            locking,
            ..options.clone()
        },
        named_by: Some(link.path.clone()),
    })
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

fn lock(file: &Arc<File>, path: &Path, options: &OpenOptions) -> Result<Option<FileLock>> {
    let usage = match options.locking {
        Locking::Off => return Ok(None),
        Locking::Shared => Use::ReadShared,
        Locking::Exclusive | Locking::NoWriters if options.writable => Use::Write,
        // As QEMU's tools: a raw image may be read while it is written, there is no metadata to trip over.
        Locking::Exclusive if !options.format.has_metadata() => Use::ReadShared,
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

/// Opens the external data file of `image` as far as the options allow.
fn attach_data_file(
    image: &mut Image,
    path: &Path,
    options: &OpenOptions,
    visited: &VisitedFiles,
) -> Result<()> {
    let name = image.references().data_file;
    let (file, data_path) = match (name, &options.data_file) {
        (None, DataFile::Path(_)) => {
            let message = format!(
                "{}: 'data-file' can only be set for images with an external data file",
                path.display()
            );
            return Err(Error::invalid(message));
        }
        (None, _) | (Some(_), DataFile::Ignore) => return Ok(()),
        (Some(_), DataFile::Use(storage)) => {
            image.set_data_file(storage.clone(), path.to_path_buf(), None);
            return Ok(());
        }
        (Some(name), DataFile::Open) if name.is_empty() => {
            return Err(Error::invalid(format!(
                "{}: the image needs a data file and names none",
                path.display()
            )));
        }
        (Some(name), DataFile::Open) => {
            let data_path = resolve_data_file(path, &name)?;
            let file = options.allowed_files.open(&data_path, options.writable);
            (file.map_err(|error| error.named_by(path))?, data_path)
        }
        (Some(_), DataFile::Path(data_path)) => {
            (open_file(data_path, options.writable)?, data_path.clone())
        }
    };
    let failed = |error| Error::io(format!("{}: cannot stat", data_path.display()), error);
    if visited.is_last(&file).map_err(failed)? {
        return Err(Error::invalid(format!(
            "{}: is its own data file",
            path.display()
        )));
    }
    let file = Arc::new(file);
    let lock = lock(&file, &data_path, options)?;
    let storage = HostFile::new(file).map_err(failed)?;
    image.set_data_file(Arc::new(storage), data_path, lock);
    Ok(())
}
