//! `convert`: copies the disks of one or more images to another.

mod destination;
mod settings;

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Result, anyhow, bail};
use clap::Command;
use qcow::{BitmapInfo, Image};

use crate::command_line::format_options;
use crate::command_line::getopt::Matches;
use crate::command_line::keyval;
use crate::command_line::manual::{DONE_OR_FAILED, Manual};
use crate::command_line::options::{self, flag, short_flag, value};
use crate::command_line::source::{self, Source};
use crate::copy::{self, Copy, Failure, Input, Kind, Order, Plan};
use crate::open::disk::Disk;
use crate::open::{self, Opened, Opening};
use crate::output;
use crate::output::errors::cause;
use crate::output::progress::Progress;
use crate::output::report;
use crate::signals::Signals;
use crate::verbs::{bitmap, create};
use crate::{confine, target};

use destination::Destination;
use settings::Settings;

pub(crate) const NAME: &str = "convert";

pub(super) const MANUAL: Manual = Manual {
    about: "Copy the disk of one or more images to a new image",
    description: "Writes a new image, of the same or another format. Holes and zeroes of the source take no space \
        in it. Several sources become one disk, one after the other.",
    statuses: DONE_OR_FAILED,
    examples: &[
        (
            "Make a compressed qcow2 image of a raw disk",
            "image-tool convert -f raw -O qcow2 -c disk.raw small.qcow2",
        ),
        (
            "Make a raw image of a disk as it was in a snapshot",
            "image-tool convert -f qcow2 -l before-upgrade -O raw disk.qcow2 before.raw",
        ),
        (
            "Merge an overlay and its backing file into one image",
            "image-tool convert -p -f qcow2 -O qcow2 overlay.qcow2 whole.qcow2",
        ),
    ],
};

pub(crate) fn command() -> Command {
    options::command(NAME, &MANUAL)
        .arg(options::quiet())
        .arg(
            flag(
                "source-image-opts",
                None,
                "the sources are lists of options, not file names",
            )
            .alias("image-opts"),
        )
        .arg(value(
            "source-format",
            'f',
            "SRC_FMT",
            "format of the sources (default: probed)",
        ))
        .arg(value(
            "source-cache",
            'T',
            "SRC_CACHE",
            "cache mode of the sources (default: writeback)",
        ))
        .arg(value(
            "snapshot",
            'l',
            "SNAPSHOT",
            "read the disk as it was in this internal snapshot",
        ))
        .arg(value(
            "sparse-size",
            'S',
            "SIZE",
            "shortest run of zeroes that becomes a hole (default: 4k; 0: no holes)",
        ))
        .arg(flag(
            "salvage",
            None,
            "write zeroes where a source cannot be read, and warn",
        ))
        .arg(options::object())
        .arg(value(
            "output-format",
            'O',
            "TGT_FMT",
            "format of the target (default: raw)",
        ))
        .arg(value(
            "options",
            'o',
            "TGT_OPTS",
            "options of the target's format ('-o help' lists them)",
        ))
        .arg(value(
            "output-cache",
            't',
            "TGT_CACHE",
            "cache mode of the target (default: unsafe)",
        ))
        .arg(flag("oob-writes", 'W', "write in any order"))
        .arg(value(
            "backing",
            'B',
            "BACKING_FILENAME",
            "make the target an overlay on this image",
        ))
        .arg(value(
            "backing-format",
            'F',
            "BACKING_FMT",
            "format of the backing file",
        ))
        .arg(flag("bitmaps", None, "copy the bitmaps of the source, too"))
        .arg(flag(
            "skip-broken-bitmaps",
            None,
            "skip bitmaps that were not saved properly",
        ))
        .arg(flag(
            "target-image-opts",
            None,
            "the target is a list of options, not a file name",
        ))
        .arg(flag(
            "target-is-zero",
            None,
            "with -n: rely on the target reading as zeroes",
        ))
        .arg(options::force_share())
        .arg(value("rate", 'r', "RATE", "limit in bytes per second"))
        .arg(value(
            "parallel",
            'm',
            "NUM_COROUTINES",
            "upper limit of threads, 1 to 16 (default: 8)",
        ))
        .arg(flag(
            "copy-range-offloading",
            'C',
            "copy with copy_file_range, which can share extents",
        ))
        .arg(short_flag("compress", 'c', "compress the target (qcow2)"))
        .arg(short_flag(
            "no-create",
            'n',
            "write into an image that exists",
        ))
        .arg(short_flag("progress", 'p', "print progress in percent"))
        .arg(options::operands(
            "FILENAME",
            "the sources, and last the target",
        ))
}

pub(crate) fn run(matches: &Matches) -> Result<ExitCode> {
    let settings = Settings::read(matches)?;
    options::secrets(matches)?;
    let (target_name, source_names) = match matches.operands() {
        [sources @ .., target] if !sources.is_empty() => (Some(target), sources),
        _ => (None, &[][..]),
    };
    if settings
        .options
        .as_deref()
        .is_some_and(keyval::asks_for_help)
    {
        output::line(&create::help(&settings.format, target_name.is_some())?);
        return Ok(ExitCode::SUCCESS);
    }
    let target_name = target_name.ok_or_else(|| anyhow!("Must specify image file name"))?;
    settings.check_caches()?;
    // If neither format is supported, report the target's: that it cannot be created does not depend on the source.
    let is_foreign = |name: &String| {
        format_options::is_driver(name) && format_options::known_format(name).is_none()
    };
    if settings.source_format.as_ref().is_some_and(is_foreign)
        && format_options::is_only_read(&settings.format)
    {
        return Err(format_options::not_creatable(&settings.format));
    }
    if settings.progress && target::is_standard_output(&source::local_path(target_name)?) {
        bail!("-p prints to standard output, which is the target");
    }
    let signals = Signals::block()?;
    let progress = Arc::new(Progress::new(settings.progress, 1.0));
    progress.set(0.0);
    let sources = source_names
        .iter()
        .map(|name| {
            Source::parse(
                name,
                settings.source_format.as_deref(),
                settings.source_image_opts,
            )
        })
        .map(|source| open_source(&source?, &settings, source_names.len()))
        .collect::<Result<Vec<_>>>();
    let outcome = sources.and_then(|sources| {
        let destination = Destination::open(&settings, target_name, &sources, &signals)?;
        confine::enter(&destination.folders());
        signals.handle_in_thread(progress.clone())?;
        convert(&settings, &sources, destination, &progress)
    });
    if outcome.is_ok() {
        progress.set(100.0);
    }
    progress.end();
    outcome.map(|()| ExitCode::SUCCESS)
}

fn open_source(source: &Source, settings: &Settings, source_count: usize) -> Result<Opened> {
    let mut opening = Opening {
        share: settings.share,
        no_writers: true,
        ..Opening::default()
    };
    if let Some(param) = &settings.snapshot {
        if source_count > 1 {
            bail!("No support for concatenating multiple snapshot");
        }
        opening.snapshot = Some(param.resolve(source, &opening)?);
    }
    open::open(source, &opening)
}

fn convert(
    settings: &Settings,
    sources: &[Opened],
    destination: Destination,
    progress: &Progress,
) -> Result<()> {
    let input = Input::new(sources.iter().map(|source| source.image.clone()));
    let target = destination.image();
    if settings.no_create {
        if Disk(target).size() < input.len() {
            bail!("output file is smaller than input file");
        }
        destination::make_whole(target)?;
    }
    let compressed = settings.compress;
    let cluster_size = target.cluster_size();
    if compressed && cluster_size.is_none() {
        bail!("Compression not supported for this file format");
    }
    let unit = cluster_size.filter(|_| compressed);
    let mut plan = Plan::new(settings::PIECE.max(unit.unwrap_or(0)));
    plan.unit = unit;
    plan.backing_depth = destination.has_backing.then_some(1);
    plan.skip_zeroes = destination.is_zero && settings.sparse.is_some();
    plan.backing_len = destination.backing_len;
    plan.salvage = settings.salvage;
    if settings.sparse.is_none() {
        plan.max_zero = Some(plan.max_data);
    }
    let copy = Copy {
        input: &input,
        target,
        sparse: settings.sparse,
        zeroes_as_data: settings.sparse.is_none(),
        target_is_zero: destination.is_zero,
        compressed,
        salvage: settings.salvage,
        offload: settings.copy_range && !destination.is_stream(),
        order: match cluster_size {
            _ if compressed => Order::Parallel,
            _ if destination.is_stream() => Order::Sequential,
            Some(_) if !settings.any_order => Order::Sequential,
            // In a raw file, the order of writes does not decide where data lies.
            _ => Order::Any,
        },
        threads: settings.threads(),
        durable: false,
        rate: settings.rate,
        progress,
        total: total(settings, &input, target, &plan)?,
    };
    fill(settings, sources, &destination, || {
        copy::run(&copy, plan).map_err(|failure| explain(&failure, &input, target))
    })?;
    destination.finish()
}

/// Copies the disk and its bitmaps. A target that is written in place is marked incomplete meanwhile.
fn fill(
    settings: &Settings,
    sources: &[Opened],
    destination: &Destination,
    copy: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let target = destination.image();
    let is_marked = destination.mark()?;
    copy()?;
    let bitmaps = match settings.bitmaps {
        true => copy_bitmaps(sources, target, settings.skip_broken_bitmaps),
        false => Ok(()),
    };
    // The disk is complete even if the bitmaps could not be copied.
    let unmarked = match is_marked {
        true => destination.unmark(),
        false => Ok(()),
    };
    bitmaps.and(unmarked)
}

/// The bytes to copy, counted only if progress is printed.
fn total(settings: &Settings, input: &Input, target: &Image, plan: &Plan) -> Result<u64> {
    if !settings.progress {
        return Ok(input.len());
    }
    // The copy itself warns of ranges that cannot be read.
    let mut plan = plan.quiet();
    let mut total = 0;
    while let Some(piece) = plan
        .next(input)
        .map_err(|failure| explain(&failure, input, target))?
    {
        if piece.kind == Kind::Data || (settings.sparse.is_none() && piece.kind == Kind::Zero) {
            total += piece.len;
        }
    }
    Ok(total)
}

fn explain(failure: &Failure, input: &Input, target: &Image) -> anyhow::Error {
    match failure {
        Failure::Status(offset, error) => {
            anyhow!(
                "error while reading block status at offset {offset}: {}",
                cause(error, input.path_at(*offset))
            )
        }
        Failure::Missing(offset) => {
            anyhow!(
                "error while reading at byte {offset}: the data lies past the end of the file '{}'",
                input.path_at(*offset).display()
            )
        }
        Failure::Read(offset, error) => {
            anyhow!(
                "error while reading at byte {offset}: {}",
                cause(error, input.path_at(*offset))
            )
        }
        Failure::Write(offset, error) => {
            anyhow!(
                "error while writing at byte {offset}: {}",
                cause(error, target.path())
            )
        }
    }
}

/// Copies the persistent bitmaps of the one source.
fn copy_bitmaps(sources: &[Opened], target: &Image, skip_broken: bool) -> Result<()> {
    let Some(source) = sources.first() else {
        return Ok(());
    };
    let bitmaps = bitmaps_of(source)?;
    let broken = bitmaps.iter().rev().filter(|bitmap| bitmap.in_use);
    for bitmap in broken.filter(|_| skip_broken) {
        report::warning(format_args!(
            "Skipping inconsistent bitmap '{}'",
            bitmap.name
        ));
    }
    for bitmap in bitmaps.iter().filter(|bitmap| !bitmap.in_use) {
        let name = &bitmap.name;
        target
            .bitmap_add(name, Some(bitmap.granularity), false)
            .map_err(|error| {
                anyhow!(
                    "Failed to create bitmap {name}: {}",
                    cause(&error, target.path())
                )
            })?;
        if let Err(error) = bitmap::merge(target, name, &source.image, name) {
            // An empty bitmap would claim that nothing has changed.
            let _ = target.bitmap_remove(name);
            return Err(anyhow!("Failed to populate bitmap {name}: {error}"));
        }
        if bitmap.auto {
            target.bitmap_enable(name, true).map_err(|error| {
                anyhow!(
                    "Failed to create bitmap {name}: {}",
                    cause(&error, target.path())
                )
            })?;
        }
    }
    Ok(())
}

/// The bitmaps of an image.
pub(crate) fn bitmaps_of(opened: &Opened) -> Result<Vec<BitmapInfo>> {
    Ok(opened
        .info()?
        .qcow2
        .map(|qcow2| qcow2.bitmaps)
        .unwrap_or_default())
}

/// The format of a target, by its name.
fn target_format(name: &str) -> Result<qcow::Format> {
    format_options::new_format(name).ok_or_else(|| format_options::not_creatable(name))
}
