//! The file a command creates. It is written without a name, or where the file system cannot do that under another one in
//! the same folder, and takes its own name once it is whole, so that no failure, signal or crash leaves something
//! there that opens as an image and is not one.
//!
//! What cannot be replaced in that way is written in place: devices, files with several names, mount points, files whose owner or
//! labels a new file cannot have, files in folders that cannot be written, and what a descriptor names.

mod attributes;
mod name;
mod overwrite;
mod staging;
mod stream;
pub(crate) mod unfinished;

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Result, anyhow};
use qcow::{CreateOptions, ErrorKind, FileKind, Format, Image, OpenOptions};

use crate::command_line::source::Source;
use crate::open::{self, Opened, Opening};
use crate::output::reason::{os, reason};
use crate::signals::Watch;
use name::{End, folder_of, never_a_file};
use staging::Staging;
use stream::Stream;

pub(crate) use stream::is_standard_output;

/// A file that is being created.
#[derive(Debug)]
pub(crate) struct Target {
    /// The name it is to have.
    name: PathBuf,
    /// The name as it was given, for messages.
    shown: PathBuf,
    output: Output,
    /// The file of that name until now, locked against its other users.
    replaced: Option<Replaced>,
}

#[derive(Debug)]
enum Output {
    Staged(Staging),
    /// Under its own name, or none.
    InPlace(Arc<File>),
    /// One byte after the other.
    Stream(Stream),
}

#[derive(Debug)]
struct Replaced {
    file: Arc<File>,
    _lock: Image,
}

impl Target {
    /// Prepares to create `path`. What is there already is checked and locked, and not changed yet. With `streams`, what takes bytes
    /// one after the other will do, too; signals end the wait for someone who reads.
    pub(crate) fn prepare(path: &Path, streams: Option<&Watch>) -> Result<Self> {
        let end = End::of(path);
        let cannot =
            |error: io::Error| anyhow!("Could not create '{}': {}", path.display(), os(&error));
        let metadata = match std::fs::metadata(end.path()) {
            Ok(metadata) => metadata,
            Err(error) => return Self::absent(path, &end, error).map_err(cannot),
        };
        let kind = metadata.file_type();
        let is_device = kind.is_block_device() || kind.is_char_device();
        match streams {
            _ if kind.is_file() || kind.is_dir() || kind.is_block_device() => {}
            Some(watch) => {
                let stream = Stream::open(&end, watch).map_err(cannot)?;
                return Ok(Self::in_place(path, &end, Output::Stream(stream)));
            }
            None if kind.is_fifo() || kind.is_socket() => return Err(no_stream(path, kind)),
            None => {}
        }
        let file = File::options().read(true).write(true).open(end.path());
        let file = Arc::new(file.map_err(cannot)?);
        // Of what was opened: the name may lead elsewhere by now.
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
        let cannot =
            |error: io::Error| anyhow!("Could not create '{}': {}", path.display(), os(&error));
        let lock = OpenOptions::new(Format::Raw).writable(true);
        let lock = Image::open_file(file.clone(), path, &lock)
            .map_err(|error| anyhow!("{}", reason(&error, path)))?;
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

    /// Refuses to write in place what is read.
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

    /// Makes the image.
    pub(crate) fn create(&mut self, options: &CreateOptions) -> qcow::Result<()> {
        if let Output::InPlace(_) = &self.output {
            // The library takes the lock of the same open file once more, and gives it back.
            if self.replaced.take().is_some() {
                unfinished::in_place(&self.name, false);
            }
        }
        match &self.output {
            Output::Staged(staging) => qcow::create_file(staging.file(), &self.name, options),
            Output::Stream(stream) => qcow::create_in(stream, options),
            Output::InPlace(file) => {
                let created = qcow::create_file(file, &self.name, options);
                match &created {
                    Ok(()) => unfinished::in_place(&self.name, false),
                    // Nothing was changed.
                    Err(error) => {
                        if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Locked) {
                            unfinished::finished(&self.name);
                        }
                    }
                }
                created
            }
        }
    }

    /// Opens the image that was made; `shown` is its name as it was written. With `unsynced` it is left to the kernel to write out, if
    /// nobody finds it before it is whole.
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
            unsynced: unsynced && self.is_hidden(),
            file: Some(file.clone()),
            ..Opening::default()
        };
        open::open(&source, &opening)
    }

    fn open_stream(&self, stream: &Stream) -> Result<Opened> {
        let options = OpenOptions::new(Format::Raw).writable(true);
        let image = Image::open_storage(Box::new(stream.clone()), &self.shown, &options)
            .map_err(|error| anyhow!("{}", reason(&error, &self.shown)))?;
        Ok(Opened {
            image: Arc::new(image),
            paths: vec![self.name.clone()],
            guessed: false,
        })
    }

    /// The name it is to have, and what names in the image are relative to.
    pub(crate) fn path(&self) -> &Path {
        &self.name
    }

    /// Whether nobody finds the file by its name until it is whole.
    pub(crate) fn is_hidden(&self) -> bool {
        matches!(self.output, Output::Staged(_))
    }

    /// Whether it is a device, which holds what was on it before.
    pub(crate) fn is_device(&self) -> bool {
        match &self.output {
            Output::InPlace(file) => file.metadata().is_ok_and(|found| !found.is_file()),
            Output::Staged(_) | Output::Stream(_) => false,
        }
    }

    /// Whether it takes one byte after the other.
    pub(crate) fn is_stream(&self) -> bool {
        matches!(self.output, Output::Stream(_))
    }

    /// The folders in which names will be changed, for the confinement.
    pub(crate) fn folders(&self) -> Vec<PathBuf> {
        match self.is_hidden() {
            true => vec![folder_of(&self.name).to_owned()],
            false => Vec::new(),
        }
    }

    /// Finds out whether everything that was written was taken: some file systems (NFS, with quotas) say only when a file is closed
    /// that there is no space for it, and only to the first who closes it. So before the image is closed.
    pub(crate) fn check_written(&self) -> Result<()> {
        let file = match &self.output {
            Output::Staged(staging) => staging.file(),
            Output::InPlace(file) => file,
            Output::Stream(_) => return Ok(()),
        };
        let written = match file.try_clone() {
            Ok(again) => nix::unistd::close(again).map_err(io::Error::from),
            // No descriptor is left to close. A sync takes longer, and finds the same.
            Err(_) => file.sync_data(),
        };
        written
            .map_err(|error| anyhow!("Could not write '{}': {}", self.shown.display(), os(&error)))
    }

    /// The file is whole: gives it its name.
    pub(crate) fn finish(self) -> Result<()> {
        let verb = if self.is_stream() { "write" } else { "create" };
        self.take_name().map_err(|error| {
            anyhow!(
                "Could not {verb} '{}': {}",
                self.shown.display(),
                os(&error)
            )
        })?;
        unfinished::finished(&self.name);
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
        if !is_of_the_name(error) {
            return taken;
        }
        // Should it not even be emptied (a swap file that is in use), it is as it was.
        replaced.file.set_len(0)?;
        unfinished::in_place(&self.name, false);
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

/// A file to write instead of `old`, which it replaces in the end; `None` if that cannot be.
fn stage_beside(name: &Path, old: &File, metadata: &Metadata) -> io::Result<Option<Staging>> {
    if !staging::is_replaceable(old, metadata, name) {
        return Ok(None);
    }
    let staging = match Staging::new(name, Some(metadata)) {
        Ok(staging) => staging,
        Err(error) if is_of_the_name(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    if attributes::inherit(staging.file(), old).is_err() {
        staging.remove();
        return Ok(None);
    }
    Ok(Some(staging))
}

/// Whether an error says that names cannot be changed, rather than that something is wrong.
fn is_of_the_name(error: &io::Error) -> bool {
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

/// Why a file is not written.
pub(crate) fn is_read(path: &Path) -> anyhow::Error {
    anyhow!("'{}' is read by this command, too", path.display())
}

fn not_a_file(path: &Path) -> anyhow::Error {
    anyhow!(
        "'file' driver requires '{}' to be a regular file",
        path.display()
    )
}
