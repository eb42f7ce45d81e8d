//! The file that a command creates. It is staged: written without a name, or where the file system does not support
//! that, under a temporary name in the same folder. It takes its own name when it is complete, so that a failure, a
//! signal or a crash never leaves an incomplete file that opens as an image.
//!
//! Files that cannot be replaced are written in place: devices, files with several hard links, mount points, files
//! whose owner or labels a new file cannot have, files in folders that are not writable, and files named by a
//! descriptor.

mod attributes;

pub(crate) mod incomplete;
mod name;
mod overwrite;
mod staging;
mod stream;

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Result, anyhow};
use qcow::{CreateOptions, ErrorKind, FileKind, Format, Image, OpenOptions};

use crate::command_line::source::Source;
use crate::open::{self, Opened, Opening};
use crate::output::errors::{describe, describe_os};
use crate::signals::Signals;
use name::{End, folder_of, never_a_file};
use staging::Staging;
use stream::Stream;

pub(crate) use stream::is_standard_output;

/// A file that is being created.
#[derive(Debug)]
pub(crate) struct Target {
    /// The name that it takes when it is complete.
    name: PathBuf,
    /// The name on the command line, for messages.
    shown: PathBuf,
    output: Output,
    /// The file that it replaces, locked against other processes.
    replaced: Option<Replaced>,
}

#[derive(Debug)]
enum Output {
    Staged(Staging),
    /// Under its own name, or opened by a descriptor.
    InPlace(Arc<File>),
    /// A pipe, socket or character device.
    Stream(Stream),
}

#[derive(Debug)]
struct Replaced {
    file: Arc<File>,
    _lock: Image,
}

impl Target {
    /// Prepares to create `path`. An existing file is checked and locked, and not changed yet. With `streams`, pipes,
    /// sockets and character devices are accepted, too; a signal ends the wait for a reader of a FIFO.
    pub(crate) fn prepare(path: &Path, streams: Option<&Signals>) -> Result<Self> {
        let end = End::of(path);
        let cannot = |error: io::Error| {
            anyhow!(
                "Could not create '{}': {}",
                path.display(),
                describe_os(&error)
            )
        };
        let metadata = match std::fs::metadata(end.path()) {
            Ok(metadata) => metadata,
            Err(error) => return Self::absent(path, &end, error).map_err(cannot),
        };
        let kind = metadata.file_type();
        let is_device = kind.is_block_device() || kind.is_char_device();
        match streams {
            _ if kind.is_file() || kind.is_dir() || kind.is_block_device() => {}
            Some(signals) => {
                let stream = Stream::open(&end, signals).map_err(cannot)?;
                return Ok(Self::in_place(path, &end, Output::Stream(stream)));
            }
            None if kind.is_fifo() || kind.is_socket() => return Err(no_stream(path, kind)),
            None => {}
        }
        let file = File::options().read(true).write(true).open(end.path());
        let file = Arc::new(file.map_err(cannot)?);
        // The metadata of the open file: its name may lead to another one by now.
        let metadata = file.metadata().map_err(cannot)?;
        if metadata.is_file() {
            return Self::existing(&end, path, file, &metadata);
        }
        match is_device {
            true => Ok(Self::in_place(path, &end, Output::InPlace(file))),
            false => Err(not_a_file(path)),
        }
    }

    fn in_place(path: &Path, end: &End, output: Output) -> Self {
        Self {
            name: end.path().to_owned(),
            shown: path.to_owned(),
            output,
            replaced: None,
        }
    }

    fn absent(path: &Path, end: &End, error: io::Error) -> io::Result<Self> {
        let name = end.path();
        if let Some(error) = never_a_file(name, error) {
            return Err(error);
        }
        Ok(Self {
            name: name.to_owned(),
            shown: path.to_owned(),
            output: Output::Staged(Staging::new(name, None)?),
            replaced: None,
        })
    }

    fn existing(end: &End, path: &Path, file: Arc<File>, metadata: &Metadata) -> Result<Self> {
        let cannot = |error: io::Error| {
            anyhow!(
                "Could not create '{}': {}",
                path.display(),
                describe_os(&error)
            )
        };
        let lock = OpenOptions::new(Format::Raw).writable(true);
        let lock = Image::open_file(file.clone(), path, &lock)
            .map_err(|error| anyhow!("{}", describe(&error, path)))?;
        let staging = match end {
            End::Name(name) => stage_beside(name, &file, metadata).map_err(cannot)?,
            End::Descriptor(_) => None,
        };
        let (name, shown) = (end.path().to_owned(), path.to_owned());
        let replaced = |file| Some(Replaced { file, _lock: lock });
        Ok(match staging {
            Some(staging) => Self {
                name,
                shown,
                output: Output::Staged(staging),
                replaced: replaced(file),
            },
            None => Self {
                name,
                shown,
                output: Output::InPlace(file.clone()),
                replaced: replaced(file),
            },
        })
    }

    /// Refuses a target that is written in place and is also read.
    pub(crate) fn check_sources(&self, sources: &[Opened]) -> Result<()> {
        let Output::InPlace(file) = &self.output else {
            return Ok(());
        };
        let written = file.metadata()?;
        match sources.iter().any(|source| source.reads(&written)) {
            true => Err(is_read(&self.shown)),
            false => Ok(()),
        }
    }

    /// Creates the image.
    pub(crate) fn create(&mut self, options: &CreateOptions) -> qcow::Result<()> {
        if let Output::InPlace(_) = &self.output {
            // The library locks the same open file again, and releases that lock.
            if self.replaced.take().is_some() {
                incomplete::add_in_place(&self.name);
            }
        }
        match &self.output {
            Output::Staged(staging) => qcow::create_file(staging.file(), &self.name, options),
            Output::Stream(stream) => qcow::create_in(stream, options),
            Output::InPlace(file) => {
                let created = qcow::create_file(file, &self.name, options);
                match &created {
                    Ok(()) => incomplete::add_in_place(&self.name),
                    // The file was not changed.
                    Err(error) => {
                        if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Locked) {
                            incomplete::remove(&self.name);
                        }
                    }
                }
                created
            }
        }
    }

    /// Opens the image that was created; `shown` is its name on the command line. With `unsynced`, a staged file is not
    /// synced: a crash removes it anyway.
    pub(crate) fn open(&self, shown: &str, format: Format, unsynced: bool) -> Result<Opened> {
        let source = Source {
            text: shown.to_owned(),
            ..Source::of_file(self.name.clone(), Some(format.name().to_owned()))
        };
        let file = match &self.output {
            Output::Staged(staging) => staging.file(),
            Output::InPlace(file) => file,
            Output::Stream(stream) => return self.open_stream(stream),
        };
        let opening = Opening {
            writable: true,
            unsynced: unsynced && self.is_staged(),
            file: Some(file.clone()),
            ..Opening::default()
        };
        open::open(&source, &opening)
    }

    fn open_stream(&self, stream: &Stream) -> Result<Opened> {
        let options = OpenOptions::new(Format::Raw).writable(true);
        let image = Image::open_storage(Box::new(stream.clone()), &self.shown, &options)
            .map_err(|error| anyhow!("{}", describe(&error, &self.shown)))?;
        Ok(Opened {
            image: Arc::new(image),
            paths: vec![self.name.clone()],
            guessed: false,
        })
    }

    /// The final name, to which names in the image are relative.
    pub(crate) fn path(&self) -> &Path {
        &self.name
    }

    /// Whether the file has no name, or a temporary one, until it is complete.
    pub(crate) fn is_staged(&self) -> bool {
        matches!(self.output, Output::Staged(_))
    }

    /// Whether it is a device, which keeps old data where nothing is written.
    pub(crate) fn is_device(&self) -> bool {
        match &self.output {
            Output::InPlace(file) => file.metadata().is_ok_and(|found| !found.is_file()),
            Output::Staged(_) | Output::Stream(_) => false,
        }
    }

    /// Whether it is a pipe, socket or character device.
    pub(crate) fn is_stream(&self) -> bool {
        matches!(self.output, Output::Stream(_))
    }

    /// The folders in which names change, for the confinement.
    pub(crate) fn folders(&self) -> Vec<PathBuf> {
        match self.is_staged() {
            true => vec![folder_of(&self.name).to_owned()],
            false => Vec::new(),
        }
    }

    /// Returns the errors that some file systems (NFS with quotas) report only when a file is closed, and only to the
    /// first close. Call it before the image is closed.
    pub(crate) fn check_written(&self) -> Result<()> {
        let file = match &self.output {
            Output::Staged(staging) => staging.file(),
            Output::InPlace(file) => file,
            Output::Stream(_) => return Ok(()),
        };
        let written = match file.try_clone() {
            Ok(again) => nix::unistd::close(again).map_err(io::Error::from),
            // Out of descriptors: a sync takes longer and returns the same errors.
            Err(_) => file.sync_data(),
        };
        written.map_err(|error| {
            anyhow!(
                "Could not write '{}': {}",
                self.shown.display(),
                describe_os(&error)
            )
        })
    }

    /// Gives the complete file its name.
    pub(crate) fn finish(self) -> Result<()> {
        let verb = if self.is_stream() { "write" } else { "create" };
        self.take_name().map_err(|error| {
            anyhow!(
                "Could not {verb} '{}': {}",
                self.shown.display(),
                describe_os(&error)
            )
        })?;
        incomplete::remove(&self.name);
        Ok(())
    }

    fn take_name(&self) -> io::Result<()> {
        let staging = match &self.output {
            Output::Staged(staging) => staging,
            Output::InPlace(_) => return Ok(()),
            Output::Stream(stream) => return stream.complete(),
        };
        let taken = staging.take_name(&self.name, self.replaced.is_some());
        let (Err(error), Some(replaced)) = (&taken, &self.replaced) else {
            return taken;
        };
        if !forbids_renaming(error) {
            return taken;
        }
        // A file that cannot be truncated (an active swap file) stays as it was.
        replaced.file.set_len(0)?;
        incomplete::add_in_place(&self.name);
        overwrite::overwrite(&replaced.file, staging.file())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Output::Staged(staging) = &self.output {
            staging.remove();
        }
    }
}

/// A staged file that can replace `old`; `None` if `old` cannot be replaced.
fn stage_beside(name: &Path, old: &File, metadata: &Metadata) -> io::Result<Option<Staging>> {
    if !staging::is_replaceable(old, metadata, name) {
        return Ok(None);
    }
    let staging = match Staging::new(name, Some(metadata)) {
        Ok(staging) => staging,
        Err(error) if forbids_renaming(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    if attributes::inherit(staging.file(), old).is_err() {
        staging.remove();
        return Ok(None);
    }
    Ok(Some(staging))
}

/// Whether the error means that the name cannot be changed, and the file must be written in place.
fn forbids_renaming(error: &io::Error) -> bool {
    let reasons = [
        libc::EACCES,
        libc::EPERM,
        libc::EROFS,
        libc::EBUSY,
        libc::EXDEV,
        libc::ENOENT,
        libc::ENAMETOOLONG,
        libc::EOPNOTSUPP,
    ];
    error
        .raw_os_error()
        .is_some_and(|number| reasons.contains(&number))
}

fn no_stream(path: &Path, kind: std::fs::FileType) -> anyhow::Error {
    let kind = match kind.is_fifo() {
        true => FileKind::Fifo,
        false => FileKind::Socket,
    };
    anyhow!(
        "{}: it is {kind}, which only takes a raw image that is converted or copied",
        not_a_file(path)
    )
}

/// The error for a target that the same command reads.
pub(crate) fn is_read(path: &Path) -> anyhow::Error {
    anyhow!("'{}' is read by this command, too", path.display())
}

fn not_a_file(path: &Path) -> anyhow::Error {
    anyhow!(
        "'file' driver requires '{}' to be a regular file",
        path.display()
    )
}
