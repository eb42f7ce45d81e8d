//! The backing chain of an image as the command line describes it: options can replace parts of it, and each error names
//! its file in qemu-img's words.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Error, Result, anyhow, bail};
use qcow::{
    ChainError, Content, DataFile, Denied, Discard, ErrorKind, FileKind, Format, Image, LinkFile,
    Locking, OpenOptions, RecordedBacking,
};

use super::unsynced::Unsynced;
use super::{Opening, SnapshotDamaged, WrongType, named_by, probe};
use crate::command_line::source::{BackingOverride, Locks, Source};
use crate::output;
use crate::output::errors::describe;

/// A chain that is being opened.
#[derive(Debug, Default)]
pub(crate) struct Chain {
    /// The files that were opened so far.
    pub(crate) paths: Vec<PathBuf>,
}

/// An image of the chain.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) source: Source,
    pub(crate) how: Opening,
    /// The format was probed, not given.
    pub(crate) guessed: bool,
}

impl Link {
    pub(crate) fn new(source: Source, how: Opening) -> Self {
        Self {
            source,
            how,
            guessed: false,
        }
    }

    fn error(&self, error: &qcow::Error) -> Error {
        anyhow!("{}", describe(error, &self.source.path))
    }
}

impl qcow::Chain for Chain {
    type Link = Link;
    type Error = Error;

    fn path<'a>(&self, link: &'a Link) -> &'a Path {
        &link.source.path
    }

    fn file(&mut self, link: &mut Link) -> Result<LinkFile<Link>> {
        let Link { source, how, .. } = link;
        source.format.as_deref().map(known).transpose()?;
        if how.writable && (how.share || source.force_share) {
            bail!("force-share=on can only be used with read-only images");
        }
        if let Some(node) = &source.file_node {
            let how = Opening {
                writable: how.writable,
                share: how.share,
                no_writers: how.no_writers,
                alone: how.alone,
                ..Opening::default()
            };
            return Ok(LinkFile::Image(Link::new(Source::clone(node), how)));
        }
        let file = match &how.file {
            Some(file) => file.clone(),
            None => Arc::new(open_file(&source.path, how.writable)?),
        };
        self.paths.push(source.path.clone());
        if how.unsynced {
            let storage = Box::new(Unsynced::new(file.clone())?);
            return Ok(LinkFile::Storage(file, storage));
        }
        Ok(LinkFile::File(file))
    }

    fn options(&mut self, link: &mut Link, content: &Content<'_>) -> Result<OpenOptions> {
        let (format, guessed) = format_of(&link.source, content)?;
        link.guessed = guessed;
        let Link { source, how, .. } = link;
        if guessed && !format.has_metadata() && how.writable {
            warn_guessed(format, &source.text);
        }
        let mut options = OpenOptions::new(format)
            .writable(how.writable)
            .locking(locking(source, how))
            .discard(Discard::Unmap)
            .for_check(how.for_check)
            .for_info(how.for_info)
            .refuse_missing(true)
            .snapshot(how.snapshot.clone());
        for window in &source.windows {
            options = options.window(window.offset, window.size);
        }
        Ok(match &source.data_file {
            _ if how.alone => options,
            Some(path) => options.data_file(DataFile::Path(path.clone())),
            None => options.data_file(DataFile::Open),
        })
    }

    fn backing(
        &mut self,
        link: &mut Link,
        image: &Image,
        recorded: Option<RecordedBacking>,
    ) -> Result<Option<Link>> {
        let Link { source, how, .. } = &*link;
        if image.format().has_bitmaps() {
            // Reading the bitmaps now: as in QEMU, an image with damaged ones cannot be opened.
            image.info().map_err(|error| link.error(&error))?;
        }
        for message in image.repaired().iter().flat_map(|repair| &repair.messages) {
            output::notice(message);
        }
        if how.alone || how.no_backing {
            return Ok(None);
        }
        let backing = match (&source.backing, recorded) {
            (BackingOverride::None, _) | (BackingOverride::AsRecorded, None) => return Ok(None),
            (BackingOverride::Image(backing), _) => Source::clone(backing),
            (BackingOverride::AsRecorded, Some(recorded)) => recorded_backing(source, &recorded)?,
        };
        let how = Opening {
            share: how.share,
            no_writers: how.no_writers,
            writable: how.writable_at == Some(1),
            writable_at: how.writable_at.and_then(|depth| depth.checked_sub(1)),
            ..Opening::default()
        };
        Ok(Some(Link::new(backing, how)))
    }

    fn refused(&self, link: &Link, why: ChainError) -> Error {
        match why {
            ChainError::Loop => anyhow!(
                "Backing file '{}' creates an infinite loop.",
                link.source.path.display()
            ),
            ChainError::TooLong(most) => anyhow!("The backing chain has more than {most} images"),
            other => other.into(),
        }
    }

    fn failed(&self, link: &Link, error: qcow::Error) -> Error {
        let message = describe(&error, &link.source.path);
        match error.kind() {
            ErrorKind::SnapshotL1(_) => Error::msg(SnapshotDamaged(message)),
            _ => Error::msg(message),
        }
    }

    fn backing_failed(&self, link: &Link, error: Error) -> Error {
        let error = match link.source.backing {
            BackingOverride::AsRecorded => named_by(error, &link.source.path),
            _ => error,
        };
        anyhow!("Could not open backing file: {error}")
    }
}

/// The backing file that an image records.
fn recorded_backing(source: &Source, recorded: &RecordedBacking) -> Result<Source> {
    let name = &recorded.name;
    let Some(format) = &recorded.format else {
        bail!("Image names the backing file '{name}' without its format, and it is not guessed");
    };
    let backing = Source::recorded(&source.path, name, Some(format))
        .map_err(|error| anyhow!("Could not open backing file: {error}"))?;
    Ok(Source {
        force_share: source.force_share,
        ..backing
    })
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
            Some(Denied::Type { kind, .. }) => Error::msg(WrongType {
                message,
                is_directory: *kind == FileKind::Directory,
            }),
            _ => Error::msg(message),
        }
    })
}

fn format_of(source: &Source, content: &Content<'_>) -> Result<(Format, bool)> {
    match &source.format {
        Some(name) => Ok((known(name)?, false)),
        None => {
            let start = source.windows.iter().map(|window| window.offset).sum();
            // As in QEMU, the extension counts only in a plain name, not in an option list.
            let path = source.path.to_string_lossy();
            let name = source.text.strip_prefix("file:").unwrap_or(&source.text);
            let path = Some(&*path).filter(|path| *path == name);
            let name = probe::format_of(content, start, path)?;
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
