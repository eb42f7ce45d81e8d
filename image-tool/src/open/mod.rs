//! Opening images: the file, its format and its backing chain.

pub(crate) mod chain;
pub(crate) mod disk;
mod probe;
pub(crate) mod snapshot_param;
mod unsynced;

use std::fmt;
use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Result, anyhow};
use qcow::{Image, Info};

use crate::command_line::source::Source;
use crate::output::errors::describe;
use chain::{Chain, Link};
use disk::Disk;

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
    open_unnamed(source, how).map_err(|error| could_not_open(source, &error))
}

/// The error of an image, with the name by which it was to be opened.
pub(crate) fn could_not_open(source: &Source, error: &anyhow::Error) -> anyhow::Error {
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
}

/// As [`open`], but the error does not begin with the image's name.
pub(crate) fn open_unnamed(source: &Source, how: &Opening) -> Result<Opened> {
    let mut chain = Chain::default();
    let mut top = Link::new(source.clone(), how.clone());
    let image = qcow::open_chain(&mut chain, &mut top)?;
    Ok(Opened {
        image: Arc::new(image),
        paths: chain.paths,
        guessed: top.guessed,
    })
}
