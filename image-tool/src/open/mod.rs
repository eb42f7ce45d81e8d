//! Opening images: the file, its format and its backing chain.
//!
//! The chain is opened here and not by the library, because options can replace parts of it, and each error has to name
//! its file in qemu-img's words.

pub(crate) mod disk;
mod probe;
pub(crate) mod snapshot_param;
mod unsynced;

use std::fmt;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Result, anyhow, bail};
use qcow::{
    ChainError, DataFile, Denied, Discard, ErrorKind, FileKind, Format, Image, Info, Locking,
    OpenOptions, VisitedFiles,
};

use crate::command_line::source::{BackingOverride, Locks, Source};
use crate::output;
use crate::output::errors::describe;
use disk::Disk;
use unsynced::Unsynced;

/// How to open an image.
#[derive(Debug, Clone, Default)]
pub(crate) struct Opening {
    pub(crate) writable: bool,
    /// `-U`: another process may write the image.
    pub(crate) share: bool,
    /// No other process may write an image of the chain, not even a raw one.
    pub(crate) no_writers: bool,
    /// Do not open backing and data files.
    pub(crate) alone: bool,
    /// Do not open the backing file.
    pub(crate) no_backing: bool,
    pub(crate) for_check: bool,
    /// For `info`: the image's metadata is read, not its data.
    pub(crate) for_info: bool,
    pub(crate) snapshot: Option<String>,
    /// The image at this depth of the chain is opened for writing, too.
    pub(crate) writable_at: Option<usize>,
    /// Data is not synced.
    pub(crate) unsynced: bool,
    /// The open file, if it has no name yet.
    pub(crate) file: Option<Arc<File>>,
}

impl Opening {
    /// To write the image.
    pub(crate) fn writable() -> Self {
        Self {
            writable: true,
            ..Self::default()
        }
    }

    /// To read the image; with `share`, another process may write it.
    pub(crate) fn shared(share: bool) -> Self {
        Self {
            share,
            ..Self::default()
        }
    }
}

/// An open image with its chain.
#[derive(Debug, Clone)]
pub(crate) struct Opened {
    pub(crate) image: Arc<Image>,
    /// The files of the chain.
    pub(crate) paths: Vec<PathBuf>,
    /// The format was probed, not given.
    pub(crate) guessed: bool,
}

impl Opened {
    /// The disk that the image shows.
    pub(crate) fn disk(&self) -> Disk<'_> {
        Disk(&self.image)
    }

    pub(crate) fn info(&self) -> Result<Info> {
        info(&self.image)
    }

    /// Whether a file of this chain is the file `written`. Locks prevent that, unless the file system has none.
    pub(crate) fn reads(&self, written: &Metadata) -> bool {
        self.paths.iter().any(|path| {
            std::fs::metadata(path)
                .is_ok_and(|read| (read.dev(), read.ino()) == (written.dev(), written.ino()))
        })
    }

    /// The image, to close it.
    pub(crate) fn into_image(self) -> Option<Image> {
        Arc::into_inner(self.image)
    }
}

/// The error for an image that can be opened, whose snapshot is damaged.
#[derive(Debug)]
struct SnapshotDamaged(String);

impl fmt::Display for SnapshotDamaged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The error for a file of a type that cannot hold an image.
#[derive(Debug)]
struct WrongType {
    message: String,
    /// It is a directory, which QEMU's message does not mention.
    is_directory: bool,
}

impl fmt::Display for WrongType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Adds the image that records the file to an error about the file's type.
pub(crate) fn named_by(error: anyhow::Error, image: &Path) -> anyhow::Error {
    let Some(wrong) = error.downcast_ref::<WrongType>() else {
        return error;
    };
    let kind = match wrong.is_directory {
        true => ": it is a directory",
        false => "",
    };
    anyhow!("{wrong}{kind}, named by '{}'", image.display())
}

/// The description of an image.
pub(crate) fn info(image: &Image) -> Result<Info> {
    image
        .info()
        .map_err(|error| anyhow!("{}", describe(&error, image.path())))
}

/// Opens an image.
pub(crate) fn open(source: &Source, how: &Opening) -> Result<Opened> {
    open_unnamed(source, how).map_err(|error| {
        // The image could be opened, and its snapshot could not.
        if error.is::<SnapshotDamaged>() {
            return anyhow!("Failed to load snapshot: {error}");
        }
        let message = format!("Could not open '{}': {error}", source.text);
        match error.downcast_ref::<WrongType>() {
            Some(&WrongType { is_directory, .. }) => anyhow::Error::msg(WrongType {
                message,
                is_directory,
            }),
            None => anyhow::Error::msg(message),
        }
    })
}

/// As [`open`], but the error does not begin with the image's name.
pub(crate) fn open_unnamed(source: &Source, how: &Opening) -> Result<Opened> {
    let mut chain = Chain::default();
    let (image, guessed) = chain.open(source, how)?;
    Ok(Opened {
        image: Arc::new(image),
        paths: chain.paths,
        guessed,
    })
}

/// The files of a chain that were opened so far, to detect loops.
#[derive(Debug, Default)]
struct Chain {
    visited: VisitedFiles,
    paths: Vec<PathBuf>,
}

/// The `file` node of an image.
#[derive(Debug, Clone)]
enum FileNode {
    File(Arc<File>),
    /// The disk of another image.
    Image(Arc<Image>),
}

impl FileNode {
    fn open(
        self,
        path: &Path,
        options: &OpenOptions,
        unsynced: bool,
    ) -> Result<qcow::Result<Image>> {
        Ok(match self {
            Self::File(file) if unsynced => {
                Image::open_storage(Box::new(Unsynced::new(file)?), path, options)
            }
            Self::File(file) => Image::open_file(file, path, options),
            Self::Image(image) => Image::open_storage(Box::new(image), path, options),
        })
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::File(file) => file.read_at(buffer, offset),
            Self::Image(image) => {
                let inside = image.virtual_size().saturating_sub(offset);
                let len = buffer
                    .len()
                    .min(usize::try_from(inside).unwrap_or(usize::MAX));
                let part = buffer.get_mut(..len).unwrap_or_default();
                let read = image.read_at(offset, part);
                read.map(|()| len).map_err(io::Error::other)
            }
        }
    }
}

impl Chain {
    fn open(&mut self, source: &Source, how: &Opening) -> Result<(Image, bool)> {
        source.format.as_deref().map(known).transpose()?;
        if how.writable && (how.share || source.force_share) {
            bail!("force-share=on can only be used with read-only images");
        }
        let storage = self.storage(source, how)?;
        let (format, guessed) = format_of(source, &storage)?;
        if guessed && !format.has_metadata() && how.writable {
            warn_guessed(format, &source.text);
        }
        let mut options = OpenOptions::new(format)
            .writable(how.writable)
            .locking(locking(source, how))
            .discard(Discard::Unmap)
            .for_check(how.for_check)
            .for_info(how.for_info)
            .snapshot(how.snapshot.clone());
        for window in &source.windows {
            options = options.window(window.offset, window.size);
        }
        let mut backing = None;
        if !how.alone {
            options = options.data_file(self.data_file(source));
            if !how.no_backing {
                backing = self.backing(source, format, &storage, how)?;
            }
        }
        let image = storage.open(&source.path, &options, how.unsynced)?;
        let image = image.map_err(|error| {
            let message = describe(&error, &source.path);
            match error.kind() {
                ErrorKind::SnapshotL1(_) => anyhow::Error::msg(SnapshotDamaged(message)),
                _ => anyhow::Error::msg(message),
            }
        })?;
        if format.has_bitmaps() {
            // Reading the bitmaps now: as in QEMU, an image with damaged ones cannot be opened.
            let describe_error = |error| anyhow!("{}", describe(&error, &source.path));
            image.info().map_err(describe_error)?;
        }
        for message in image.repaired().iter().flat_map(|repair| &repair.messages) {
            output::notice(message);
        }
        Ok(match backing {
            Some(backing) => (image.over(Arc::new(backing)), guessed),
            None => (image, guessed),
        })
    }

    /// Opens the `file` node.
    fn storage(&mut self, source: &Source, how: &Opening) -> Result<FileNode> {
        if let Some(node) = &source.file_node {
            let how = Opening {
                writable: how.writable,
                share: how.share,
                no_writers: how.no_writers,
                alone: how.alone,
                ..Opening::default()
            };
            let (image, _) = self.open(node, &how)?;
            return Ok(FileNode::Image(Arc::new(image)));
        }
        let file = match &how.file {
            Some(file) => file.clone(),
            None => Arc::new(open_file(&source.path, how.writable)?),
        };
        self.add(&file, &source.path)?;
        Ok(FileNode::File(file))
    }

    /// Adds a file, unless that makes a loop or the chain too long.
    fn add(&mut self, file: &File, path: &Path) -> Result<()> {
        match self.visited.add(file) {
            Err(ChainError::Loop) => bail!(
                "Backing file '{}' creates an infinite loop.",
                path.display()
            ),
            Err(ChainError::TooLong(most)) => {
                bail!("The backing chain has more than {most} images")
            }
            added => added?,
        }
        self.paths.push(path.to_owned());
        Ok(())
    }

    fn data_file(&self, source: &Source) -> DataFile {
        match &source.data_file {
            Some(path) => DataFile::Path(path.clone()),
            None => DataFile::Open,
        }
    }

    /// Opens the backing file, if there is one.
    fn backing(
        &mut self,
        source: &Source,
        format: Format,
        storage: &FileNode,
        how: &Opening,
    ) -> Result<Option<Image>> {
        let backing = match &source.backing {
            BackingOverride::None => return Ok(None),
            BackingOverride::Image(backing) => Source::clone(backing),
            BackingOverride::AsRecorded if !format.has_backing() => return Ok(None),
            BackingOverride::AsRecorded => match recorded_backing(source, format, storage)? {
                Some(backing) => backing,
                None => return Ok(None),
            },
        };
        let how = Opening {
            share: how.share,
            no_writers: how.no_writers,
            writable: how.writable_at == Some(1),
            writable_at: how.writable_at.and_then(|depth| depth.checked_sub(1)),
            ..Opening::default()
        };
        let (image, _) = self.open(&backing, &how).map_err(|error| {
            let error = match source.backing {
                BackingOverride::AsRecorded => named_by(error, &source.path),
                _ => error,
            };
            anyhow!("Could not open backing file: {error}")
        })?;
        Ok(Some(image))
    }
}

/// The backing file that an image records.
fn recorded_backing(source: &Source, format: Format, storage: &FileNode) -> Result<Option<Source>> {
    let mut header = OpenOptions::new(format)
        .locking(Locking::Off)
        .for_check(true);
    for window in &source.windows {
        header = header.window(window.offset, window.size);
    }
    let describe_error = |error: &qcow::Error| anyhow!("{}", describe(error, &source.path));
    let image = storage.clone().open(&source.path, &header, false)?;
    let image = image.map_err(|error| describe_error(&error))?;
    let info = image.info().map_err(|error| describe_error(&error))?;
    let Some(name) = info.backing_filename else {
        return Ok(None);
    };
    let Some(format) = info.backing_format else {
        bail!("Image names the backing file '{name}' without its format, and it is not guessed");
    };
    let backing = Source::recorded(&source.path, &name, Some(&format))
        .map_err(|error| anyhow!("Could not open backing file: {error}"))?;
    Ok(Some(Source {
        force_share: source.force_share,
        ..backing
    }))
}

fn locking(source: &Source, how: &Opening) -> Locking {
    match source.locks {
        Locks::Off => Locking::Off,
        _ if how.share || source.force_share => Locking::Shared,
        _ if how.no_writers => Locking::NoWriters,
        Locks::Auto | Locks::On => Locking::Exclusive,
    }
}

/// Opens the file of an image.
fn open_file(path: &Path, writable: bool) -> Result<File> {
    qcow::open_file(path, writable).map_err(|error| {
        let message = describe(&error, path);
        match error.denied() {
            // QEMU prints the system's error here.
            Some(Denied::Type { kind, .. }) if *kind == FileKind::Directory && writable => {
                anyhow!("Could not open '{}': Is a directory", path.display())
            }
            Some(Denied::Type { kind, .. }) => anyhow::Error::msg(WrongType {
                message,
                is_directory: *kind == FileKind::Directory,
            }),
            _ => anyhow::Error::msg(message),
        }
    })
}

fn format_of(source: &Source, storage: &FileNode) -> Result<(Format, bool)> {
    match &source.format {
        Some(name) => Ok((known(name)?, false)),
        None => {
            let start = source.windows.iter().map(|window| window.offset).sum();
            let read_at = |at, buffer: &mut [u8]| storage.read_at(at, buffer);
            // As in QEMU, the extension counts only in a plain name, not in an option list.
            let path = source.path.to_string_lossy();
            let name = source.text.strip_prefix("file:").unwrap_or(&source.text);
            let path = Some(&*path).filter(|path| *path == name);
            let name = probe::format_of(read_at, start, path)?;
            let format = name.parse();
            let format = format.map_err(|_| anyhow!("The format '{name}' is not supported"))?;
            Ok((format, true))
        }
    }
}

fn known(name: &str) -> Result<Format> {
    name.parse().map_err(|_| anyhow!("Unknown driver '{name}'"))
}

fn warn_guessed(format: Format, name: &str) {
    output::notice(format_args!(
        "WARNING: Image format was not specified for '{name}' and probing guessed {format}.\n         \
         Automatically detecting the format is dangerous for {format} images, write operations on block 0 will be restricted.\n         \
         Specify the '{format}' format explicitly to remove the restrictions."
    ));
}
