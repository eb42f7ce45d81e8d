//! Opening images: the file, its format, its backing chain, and what to say when one of them is not there.
//!
//! The chain is opened here, image by image, rather than by the library, because the user may replace parts of it and
//! because each message has to name the file it is about.

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
    DataFile, Denied, Discard, ErrorKind, FileKind, Format, Image, Info, Locking, OpenOptions,
};

use crate::command_line::source::{BackingOverride, Locks, Source};
use crate::output;
use crate::output::errors::describe;
use disk::Disk;
use unsynced::Unsynced;

/// The most images a chain may have.
const MAX_CHAIN: usize = 64;

/// How to open an image.
#[derive(Debug, Clone, Default)]
pub(crate) struct Opening {
    pub(crate) writable: bool,
    /// `-U`: beside a writer.
    pub(crate) share: bool,
    /// Nobody writes any image of the chain meanwhile, not even a raw one.
    pub(crate) no_writers: bool,
    /// Leave backing and data files alone.
    pub(crate) alone: bool,
    /// Leave the backing file alone, and open the data file.
    pub(crate) no_backing: bool,
    pub(crate) for_check: bool,
    /// Only its facts are asked for.
    pub(crate) for_info: bool,
    pub(crate) snapshot: Option<String>,
    /// The image this far down the chain is written, too.
    pub(crate) writable_at: Option<usize>,
    /// Data is left to the kernel to write out.
    pub(crate) unsynced: bool,
    /// The image's file, if it has no name yet.
    pub(crate) file: Option<Arc<File>>,
}

/// An open image and what was learnt on the way.
#[derive(Debug, Clone)]
pub(crate) struct Opened {
    pub(crate) image: Arc<Image>,
    /// Every file of the chain.
    pub(crate) paths: Vec<PathBuf>,
    /// The format was guessed, not given.
    pub(crate) guessed: bool,
}

impl Opened {
    /// The disk it shows.
    pub(crate) fn disk(&self) -> Disk<'_> {
        Disk(&self.image)
    }

    pub(crate) fn info(&self) -> Result<Info> {
        info(&self.image)
    }

    /// Whether a file of this chain is the one that is written. Locks keep that from happening, where there are any.
    pub(crate) fn reads(&self, written: &Metadata) -> bool {
        self.paths.iter().any(|path| {
            std::fs::metadata(path)
                .is_ok_and(|read| (read.dev(), read.ino()) == (written.dev(), written.ino()))
        })
    }

    /// The image alone, to close it.
    pub(crate) fn into_image(self) -> Option<Image> {
        Arc::into_inner(self.image)
    }
}

/// An image is there, and the snapshot that was asked for is damaged; how, in words.
#[derive(Debug)]
struct SnapshotDamaged(String);

impl fmt::Display for SnapshotDamaged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A file that no image can be in.
#[derive(Debug)]
struct WrongType {
    words: String,
    /// It is a directory, which the words do not say: QEMU's don't.
    is_directory: bool,
}

impl fmt::Display for WrongType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words)
    }
}

/// Adds which image names the file, if an error is about its type.
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

/// The facts of an image.
pub(crate) fn info(image: &Image) -> Result<Info> {
    image
        .info()
        .map_err(|error| anyhow!("{}", describe(&error, image.path())))
}

/// Opens the image a user named.
pub(crate) fn open(source: &Source, how: &Opening) -> Result<Opened> {
    open_unnamed(source, how).map_err(|error| {
        // The image is there; it is the snapshot that is not.
        if error.is::<SnapshotDamaged>() {
            return anyhow!("Failed to load snapshot: {error}");
        }
        let words = format!("Could not open '{}': {error}", source.text);
        match error.downcast_ref::<WrongType>() {
            Some(&WrongType { is_directory, .. }) => anyhow::Error::msg(WrongType {
                words,
                is_directory,
            }),
            None => anyhow::Error::msg(words),
        }
    })
}

/// As [`open`], and the error does not begin with the image's name.
pub(crate) fn open_unnamed(source: &Source, how: &Opening) -> Result<Opened> {
    let mut chain = Chain::default();
    let (image, guessed) = chain.open(source, how)?;
    Ok(Opened {
        image: Arc::new(image),
        paths: chain.paths,
        guessed,
    })
}

/// The files of a chain while it is opened, to find loops.
#[derive(Debug, Default)]
struct Chain {
    seen: Vec<(u64, u64)>,
    paths: Vec<PathBuf>,
}

/// What an image lies in.
#[derive(Debug, Clone)]
enum Under {
    File(Arc<File>),
    /// The disk of another image.
    Image(Arc<Image>),
}

impl Under {
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
        if guessed && format == Format::Raw && how.writable {
            warn_guessed_raw(&source.text);
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
        let mut below = None;
        if !how.alone {
            options = options.data_file(self.data_file(source));
            if !how.no_backing {
                below = self.below(source, format, &storage, how)?;
            }
        }
        let image = storage.open(&source.path, &options, how.unsynced)?;
        let image = image.map_err(|error| {
            let words = describe(&error, &source.path);
            match error.kind() {
                ErrorKind::SnapshotL1(_) => anyhow::Error::msg(SnapshotDamaged(words)),
                _ => anyhow::Error::msg(words),
            }
        })?;
        if format.has_bitmaps() {
            // Damaged bitmaps keep it from being opened at all, as with QEMU: its facts have them.
            let told = |error| anyhow!("{}", describe(&error, &source.path));
            image.info().map_err(told)?;
        }
        for message in image.repaired().iter().flat_map(|repair| &repair.messages) {
            output::notice(message);
        }
        Ok(match below {
            Some(below) => (image.over(Arc::new(below)), guessed),
            None => (image, guessed),
        })
    }

    /// What the image lies in.
    fn storage(&mut self, source: &Source, how: &Opening) -> Result<Under> {
        if let Some(under) = &source.file_node {
            let how = Opening {
                writable: how.writable,
                share: how.share,
                no_writers: how.no_writers,
                alone: how.alone,
                ..Opening::default()
            };
            let (image, _) = self.open(under, &how)?;
            return Ok(Under::Image(Arc::new(image)));
        }
        let file = match &how.file {
            Some(file) => file.clone(),
            None => Arc::new(open_file(&source.path, how.writable)?),
        };
        self.remember(&file, &source.path)?;
        Ok(Under::File(file))
    }

    fn remember(&mut self, file: &File, path: &Path) -> Result<()> {
        let metadata = file.metadata()?;
        let id = (metadata.dev(), metadata.ino());
        if self.seen.contains(&id) {
            bail!(
                "Backing file '{}' creates an infinite loop.",
                path.display()
            );
        }
        if self.seen.len() == MAX_CHAIN {
            bail!("The backing chain has more than {MAX_CHAIN} images");
        }
        self.seen.push(id);
        self.paths.push(path.to_owned());
        Ok(())
    }

    fn data_file(&self, source: &Source) -> DataFile {
        match &source.data_file {
            Some(path) => DataFile::Path(path.clone()),
            None => DataFile::Open,
        }
    }

    fn below(
        &mut self,
        source: &Source,
        format: Format,
        storage: &Under,
        how: &Opening,
    ) -> Result<Option<Image>> {
        let below = match &source.backing {
            BackingOverride::None => return Ok(None),
            BackingOverride::Image(below) => Source::clone(below),
            BackingOverride::AsRecorded if !format.has_backing() => return Ok(None),
            BackingOverride::AsRecorded => match recorded_backing(source, format, storage)? {
                Some(below) => below,
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
        let (image, _) = self.open(&below, &how).map_err(|error| {
            let error = match source.backing {
                BackingOverride::AsRecorded => named_by(error, &source.path),
                _ => error,
            };
            anyhow!("Could not open backing file: {error}")
        })?;
        Ok(Some(image))
    }
}

/// The backing file an image names, as a source of its own.
fn recorded_backing(source: &Source, format: Format, storage: &Under) -> Result<Option<Source>> {
    let mut header = OpenOptions::new(format)
        .locking(Locking::Off)
        .for_check(true);
    for window in &source.windows {
        header = header.window(window.offset, window.size);
    }
    let told = |error: &qcow::Error| anyhow!("{}", describe(error, &source.path));
    let image = storage.clone().open(&source.path, &header, false)?;
    let image = image.map_err(|error| told(&error))?;
    let info = image.info().map_err(|error| told(&error))?;
    let Some(name) = info.backing_filename else {
        return Ok(None);
    };
    let Some(format) = info.backing_format else {
        bail!("Image names the backing file '{name}' without its format, and it is not guessed");
    };
    let below = Source::recorded(&source.path, &name, Some(&format))
        .map_err(|error| anyhow!("Could not open backing file: {error}"))?;
    Ok(Some(Source {
        force_share: source.force_share,
        ..below
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

/// Opens the file under an image.
fn open_file(path: &Path, writable: bool) -> Result<File> {
    qcow::open_file(path, writable).map_err(|error| {
        let words = describe(&error, path);
        match error.denied() {
            // As QEMU, which learns it from the system.
            Some(Denied::Type { kind, .. }) if *kind == FileKind::Directory && writable => {
                anyhow!("Could not open '{}': Is a directory", path.display())
            }
            Some(Denied::Type { kind, .. }) => anyhow::Error::msg(WrongType {
                words,
                is_directory: *kind == FileKind::Directory,
            }),
            _ => anyhow::Error::msg(words),
        }
    })
}

fn format_of(source: &Source, storage: &Under) -> Result<(Format, bool)> {
    match &source.format {
        Some(name) => Ok((known(name)?, false)),
        None => {
            let start = source.windows.iter().map(|window| window.offset).sum();
            let read_at = |at, buffer: &mut [u8]| storage.read_at(at, buffer);
            // As with QEMU, the name counts if it is one, and not an option among others.
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

fn warn_guessed_raw(name: &str) {
    output::notice(format_args!(
        "WARNING: Image format was not specified for '{name}' and probing guessed raw.\n         \
         Automatically detecting the format is dangerous for raw images, write operations on block 0 will be restricted.\n         \
         Specify the 'raw' format explicitly to remove the restrictions."
    ));
}
