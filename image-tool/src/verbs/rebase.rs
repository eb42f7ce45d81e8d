//! `rebase`: gives an overlay another backing file and keeps its content, or with `-u` changes only the name.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Result, anyhow, bail};
use clap::Command;
use qcow::{ErrorKind, Image};

use crate::command_line::cache::Cache;
use crate::command_line::format_options::is_driver;
use crate::command_line::getopt::Matches;
use crate::command_line::manual::{DONE_OR_FAILED, Manual};
use crate::command_line::options::{self, flag, value};
use crate::command_line::source::Source;
use crate::confine;
use crate::copy::buffer::Buffer;
use crate::copy::workers;
use crate::copy::zero::is_zero;
use crate::open::disk::Disk;
use crate::open::{self, Opened, Opening};
use crate::output::errors::cause;
use crate::output::progress::Progress;
use crate::output::report::Usage;
use crate::signals::Signals;
use crate::verbs::close;

pub(crate) const NAME: &str = "rebase";

/// Bytes that a thread compares at a time.
const CHUNK: u64 = 1 << 20;

pub(super) const MANUAL: Manual = Manual {
    about: "Give an overlay another backing file",
    description: "Copies into the overlay what differs between the old and the new backing file, so that the disk \
        stays the same, and then records the new name. With -u only the name is changed.",
    statuses: DONE_OR_FAILED,
    examples: &[
        (
            "Move an overlay to another base",
            "image-tool rebase -f qcow2 -b new-base.qcow2 -F qcow2 overlay.qcow2",
        ),
        (
            "Make an overlay independent of its backing file",
            "image-tool rebase -f qcow2 -b '' overlay.qcow2",
        ),
        (
            "Record that the backing file was renamed",
            "image-tool rebase -f qcow2 -u -b renamed.qcow2 -F qcow2 overlay.qcow2",
        ),
    ],
};

pub(crate) fn command() -> Command {
    options::command(NAME, &MANUAL)
        .arg(options::quiet())
        .arg(options::progress())
        .arg(options::force_share())
        .arg(options::format())
        .arg(options::image_opts())
        .arg(value(
            "cache",
            't',
            "CACHE",
            "cache mode (default: writeback)",
        ))
        .arg(flag("compress", 'c', "compress what is written"))
        .arg(value(
            "backing",
            'b',
            "BACKING_FILENAME",
            "the new backing file; '' for none",
        ))
        .arg(value("backing-format", 'F', "BACKING_FMT", "its format"))
        .arg(value(
            "backing-cache",
            'T',
            "CACHE",
            "cache mode of the backing file (default: writeback)",
        ))
        .arg(flag("backing-unsafe", 'u', "change only the recorded name"))
        .arg(options::object())
        .arg(options::operand("FILENAME", "the overlay"))
}

pub(crate) fn run(matches: &Matches) -> Result<ExitCode> {
    options::secrets(matches)?;
    let name = options::one_image(NAME, matches)?;
    let unsafe_ = matches.flag("backing-unsafe");
    let backing = matches.text("backing");
    if !unsafe_ && backing.is_none() {
        return Err(Usage::of(
            NAME,
            "Must specify backing file (-b) or use unsafe mode (-u)",
        ));
    }
    let progress = Arc::new(Progress::new(
        matches.flag("progress") && !matches.flag("quiet"),
        2.0,
    ));
    progress.set(0.0);
    let outcome = rebase(matches, name, unsafe_, backing.as_deref(), &progress);
    progress.end();
    outcome.map(|()| ExitCode::SUCCESS)
}

fn rebase(
    matches: &Matches,
    name: &std::ffi::OsStr,
    unsafe_: bool,
    backing: Option<&str>,
    progress: &Arc<Progress>,
) -> Result<()> {
    options::cache(matches, "cache", Cache::Durable, "cache option")?;
    options::cache(
        matches,
        "backing-cache",
        Cache::Durable,
        "source cache option",
    )?;
    let signals = Signals::block()?;
    let source = options::source(matches, name)?;
    let overlay = open::open(
        &source,
        &Opening {
            writable: true,
            no_backing: unsafe_,
            ..Opening::default()
        },
    )?;
    let compress = matches.flag("compress");
    if compress && !overlay.image.format().has_compression() {
        bail!("Compression not supported for this file format");
    }
    let backing_format = matches.text("backing-format");
    if let Some(format) = backing_format
        .as_deref()
        .filter(|format| !is_driver(format))
    {
        bail!("Invalid format name: '{format}'");
    }
    let backing = backing.filter(|name| !name.is_empty());
    let new_backing = match backing {
        Some(name) if !unsafe_ => Some(open_backing(
            matches,
            &source,
            name,
            backing_format.as_deref(),
        )?),
        _ => None,
    };
    confine::enter(&[]);
    signals.handle_in_thread(progress.clone())?;
    if !unsafe_ && overlay.image.format().has_backing() {
        Rebase::new(&overlay, new_backing.as_ref(), compress, progress)?.run()?;
    }
    change(&overlay.image, backing, backing_format.as_deref())?;
    progress.set(100.0);
    close(overlay)
}

fn open_backing(
    matches: &Matches,
    overlay: &Source,
    name: &str,
    format: Option<&str>,
) -> Result<Opened> {
    let source = Source::beside(&overlay.path, name, format)
        .map_err(|error| anyhow!("Could not resolve backing filename: {error}"))?;
    open::open_unnamed(&source, &Opening::shared(matches.flag("force-share")))
        .map_err(|error| anyhow!("Could not open new backing file '{name}': {error}"))
}

/// Records the new backing file.
fn change(image: &Image, backing: Option<&str>, format: Option<&str>) -> Result<()> {
    let failed = |why: &str| {
        anyhow!(
            "Could not change the backing file to '{}': {why}",
            backing.unwrap_or_default()
        )
    };
    if backing.is_some() && format.is_none() {
        return Err(failed("backing format must be specified"));
    }
    if !image.format().has_backing() {
        return Err(failed("Operation not supported"));
    }
    image
        .record_backing_file(backing, format.filter(|_| backing.is_some()))
        .map_err(|error| match error.kind() {
            // An image with a raw data file cannot have a backing file.
            ErrorKind::InvalidInput if backing.is_some() && is_raw_outside(image) => {
                failed("Invalid argument")
            }
            ErrorKind::InvalidInput => failed("No space left in the file header"),
            _ => failed(&cause(&error, image.path())),
        })
}

fn is_raw_outside(image: &Image) -> bool {
    let qcow2 = image.info().ok().and_then(|info| info.qcow2);
    qcow2.is_some_and(|qcow2| qcow2.data_file_raw)
}

/// Copies into the overlay what differs between the old and the new backing file.
struct Rebase<'a> {
    overlay: &'a Image,
    new_backing: Option<&'a Image>,
    /// Depth of the new backing file in the old chain, if it is in it.
    kept_depth: Option<u32>,
    /// Size of the old backing file.
    old_size: u64,
    /// The unit of writes.
    unit: u64,
    compress: bool,
    progress: &'a Progress,
    next: AtomicU64,
    stop: AtomicBool,
    failure: Mutex<Option<anyhow::Error>>,
}

impl<'a> Rebase<'a> {
    fn new(
        overlay: &'a Opened,
        new_backing: Option<&'a Opened>,
        compress: bool,
        progress: &'a Progress,
    ) -> Result<Self> {
        let cluster = overlay.image.cluster_size().unwrap_or(512);
        let extended = overlay.info()?.qcow2.is_some_and(|qcow2| qcow2.extended_l2);
        let unit = if extended && !compress {
            cluster / 32
        } else {
            cluster
        };
        let kept_depth = new_backing.and_then(|backing| {
            let wanted = std::fs::canonicalize(backing.image.path()).ok()?;
            let same = |path: &std::path::PathBuf| {
                std::fs::canonicalize(path).ok().as_ref() == Some(&wanted)
            };
            overlay
                .paths
                .iter()
                .position(same)
                .and_then(|depth| u32::try_from(depth).ok())
        });
        Ok(Self {
            overlay: &overlay.image,
            new_backing: new_backing.map(|backing| &*backing.image),
            kept_depth,
            old_size: overlay.image.backing().map_or(0, |old| Disk(old).size()),
            unit,
            compress,
            progress,
            next: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            failure: Mutex::new(None),
        })
    }

    fn run(self) -> Result<()> {
        workers::share(workers::processors(), || self.work());
        match self
            .failure
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
        {
            Some(failure) => Err(failure),
            None => Ok(()),
        }
    }

    fn work(&self) {
        let chunk = CHUNK.max(self.unit);
        let mut buffers = (Buffer::new(chunk as usize), Buffer::new(chunk as usize));
        let size = Disk(self.overlay).size();
        while !self.stop.load(Ordering::Relaxed) {
            let start = self.next.fetch_add(chunk, Ordering::Relaxed);
            if start >= size {
                return;
            }
            let end = (start + chunk).min(size);
            if let Err(failure) = self.chunk(start, end, &mut buffers) {
                self.failure
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .get_or_insert(failure);
                self.stop.store(true, Ordering::Relaxed);
            }
            self.progress
                .advance((end - start) as f32 / size as f32 * 100.0);
        }
    }

    fn chunk(&self, start: u64, end: u64, buffers: &mut (Buffer, Buffer)) -> Result<()> {
        let unreadable = |error: &qcow::Error| {
            anyhow!(
                "error while reading image metadata: {}",
                cause(error, self.overlay.path())
            )
        };
        let mut at = start;
        while at < end {
            let own = self
                .overlay
                .map_layer(at, end - at)
                .map_err(|error| unreadable(&error))?;
            let own_end = at + own.length;
            if own.present {
                at = own_end;
                continue;
            }
            let old = self
                .overlay
                .map(at, own.length)
                .map_err(|error| unreadable(&error))?;
            // Data of the images that stay in the chain does not change.
            let kept = self.kept_depth.is_some_and(|kept| old.depth >= kept);
            if !kept {
                self.range(at, at + old.length, reads_zero(&old), buffers)?;
            }
            at += old.length;
        }
        Ok(())
    }

    /// Copies what differs in a range that the overlay does not hold, and that is one extent of the old chain.
    fn range(
        &self,
        start: u64,
        end: u64,
        old_zero: bool,
        buffers: &mut (Buffer, Buffer),
    ) -> Result<()> {
        if old_zero && self.new_reads_zero(start, end) {
            return Ok(());
        }
        // Whole units, since the rest of a partly written one would be copied from the backing file.
        let start = start - start % self.unit;
        let end = end
            .next_multiple_of(self.unit)
            .min(self.overlay.virtual_size());
        let len = (end - start) as usize;
        let (old, new) = (buffers.0.first(len), buffers.1.first(len));
        self.overlay
            .read_at(start, old)
            .map_err(|_| anyhow!("error while reading from old backing file"))?;
        self.read_new(start, new)
            .map_err(|_| anyhow!("error while reading from new backing file"))?;
        let unit = self.unit as usize;
        let mut done = 0;
        while let (Some(old), Some(new)) = (old.get(done..), new.get(done..)) {
            if old.is_empty() {
                break;
            }
            let differs = |(old, new): &(&[u8], &[u8])| old != new;
            let mut units = old.chunks(unit).zip(new.chunks(unit));
            let first = units.next().is_some_and(|pair| differs(&pair));
            let run = 1 + units.take_while(|pair| differs(pair) == first).count();
            let run = (run * unit).min(old.len());
            if first {
                // As in QEMU, zeroes in the old backing file are written as data, and those past its end are not.
                let at = start + done as u64;
                let beyond = old_zero && at >= self.old_size;
                self.write(at, old.get(..run).unwrap_or_default(), beyond)?;
            }
            done += run;
        }
        Ok(())
    }

    fn new_reads_zero(&self, start: u64, end: u64) -> bool {
        let Some(backing) = self.new_backing else {
            return true;
        };
        let end = end.min(Disk(backing).size());
        let mut at = start;
        while at < end {
            match Disk(backing).map(at, end - at) {
                Ok(extent) if reads_zero(&extent) => at += extent.length,
                _ => return false,
            }
        }
        true
    }

    fn read_new(&self, offset: u64, buffer: &mut [u8]) -> qcow::Result<()> {
        let Some(backing) = self.new_backing else {
            buffer.fill(0);
            return Ok(());
        };
        let inside = Disk(backing)
            .size()
            .saturating_sub(offset)
            .min(buffer.len() as u64) as usize;
        let (data, beyond) = buffer.split_at_mut(inside);
        beyond.fill(0);
        if data.is_empty() {
            Ok(())
        } else {
            Disk(backing).read(offset, data)
        }
    }

    /// Writes content of the old backing file: a hole as zeroes, anything else as data.
    fn write(&self, offset: u64, data: &[u8], is_hole: bool) -> Result<()> {
        let written = if is_hole && is_zero(data) {
            self.overlay.write_zeroes(offset, data.len() as u64, true)
        } else if self.compress {
            data.chunks(self.unit as usize)
                .enumerate()
                .try_for_each(|(index, cluster)| {
                    self.overlay
                        .write_compressed(offset + index as u64 * self.unit, cluster)
                })
        } else {
            self.overlay.write_at(offset, data)
        };
        written.map_err(|error| {
            anyhow!(
                "Error while writing to COW image: {}",
                cause(&error, self.overlay.path())
            )
        })
    }
}

fn reads_zero(extent: &qcow::Extent) -> bool {
    // The read of what is missing fails.
    !extent.missing && (extent.zero || !extent.present)
}
