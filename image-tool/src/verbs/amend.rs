//! `amend`: changes format options of an existing image.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Result, anyhow, bail, ensure};
use clap::Command;
use qcow::{Format, Preallocation};

use crate::command_line::cache::Cache;
use crate::command_line::format_options::{self, FormatOptions, amendable};
use crate::command_line::getopt::Matches;
use crate::command_line::keyval;
use crate::command_line::manual::{DONE_OR_FAILED, Manual};
use crate::command_line::options::{self, flag, value};
use crate::confine;
use crate::open::{self, Opened, Opening};
use crate::output;
use crate::output::errors::{describe, snapshot_l1};
use crate::output::progress::Progress;
use crate::output::report::{self, Hinted, Usage};
use crate::signals::Signals;
use crate::verbs::close;
use crate::verbs::resize::resize;

pub(crate) const NAME: &str = "amend";

pub(super) const MANUAL: Manual = Manual {
    about: "Change format options of an existing image",
    description: "Changes what -o names in the header and the tables of a qcow2 image. The content of the disk \
        stays the same.",
    statuses: DONE_OR_FAILED,
    examples: &[
        (
            "Let the image defer its reference counts",
            "image-tool amend -f qcow2 -o lazy_refcounts=on disk.qcow2",
        ),
        (
            "List what can be changed",
            "image-tool amend -f qcow2 -o help",
        ),
    ],
};

pub(crate) fn command() -> Command {
    options::command(NAME, &MANUAL)
        .arg(options::quiet())
        .arg(options::progress())
        .arg(options::object())
        .arg(value(
            "options",
            'o',
            "OPTIONS",
            "options to change ('-o help' lists them)",
        ))
        .arg(options::format())
        .arg(flag("force", None, "accepted; there is nothing to force"))
        .arg(options::image_opts())
        .arg(value(
            "cache",
            't',
            "CACHE",
            "cache mode (default: writeback)",
        ))
        .arg(options::operand("FILENAME", "the image"))
}

pub(crate) fn run(matches: &Matches) -> Result<ExitCode> {
    let list = format_options::joined(&matches.texts("options"))?;
    options::secrets(matches)?;
    let list = list.ok_or_else(|| Usage::of(NAME, "Must specify options (-o)"))?;
    let progress = Arc::new(Progress::new(
        matches.flag("progress") && !matches.flag("quiet"),
        1.0,
    ));
    // The progress line ends after an error, too.
    let outcome = amend_named(matches, &list, &progress);
    progress.end();
    outcome
}

fn amend_named(matches: &Matches, list: &str, progress: &Arc<Progress>) -> Result<ExitCode> {
    let asks_for_help = keyval::asks_for_help(list);
    if let (true, Some(format)) = (asks_for_help, matches.text("format")) {
        return help(&format);
    }
    let [name] = matches.operands() else {
        bail!("Expecting one image file name");
    };
    options::cache(matches, "cache", Cache::Durable, "cache option")?;
    let source = options::source(matches, name)?;
    let signals = Signals::block()?;
    let opened = open::open(&source, &Opening::writable())?;
    if asks_for_help {
        return help(opened.image.format().name());
    }
    confine::enter(&[]);
    signals.handle_in_thread(progress.clone())?;
    check_format(opened.image.format().name())?;
    let options = parse(list)?;
    progress.set(0.0);
    let outcome = amend(&opened, &options, progress);
    progress.set(100.0);
    outcome?;
    close(opened)?;
    Ok(ExitCode::SUCCESS)
}

fn check_format(format: &str) -> Result<()> {
    match format_options::known_format(format) {
        None if matches!(format, "bochs" | "cloop" | "dmg") => {
            bail!("Format driver '{format}' does not support option amendment")
        }
        None => bail!("Unknown file format '{format}'"),
        Some(format) if !format.has_amend() => {
            bail!("Format driver '{format}' does not support option amendment")
        }
        Some(_) => Ok(()),
    }
}

fn help(format: &str) -> Result<ExitCode> {
    check_format(format)?;
    let text = format!(
        "Amend options for '{format}':\n{}",
        format_options::explain(&amendable())
    );
    output::line(text.trim_end());
    Ok(ExitCode::SUCCESS)
}

/// Parses the option list; the error for an option that only `create` takes has a hint.
fn parse(list: &str) -> Result<FormatOptions> {
    let mut options = FormatOptions::new(amendable());
    let Err(error) = options.parse(list) else {
        return Ok(options);
    };
    let mut table = amendable();
    table.extend(format_options::own(Format::Qcow2));
    if FormatOptions::new(table).parse(list).is_ok() {
        return Err(Hinted {
            message: error.to_string(),
            hint: "This option is only supported for image creation".to_owned(),
        }
        .into());
    }
    Err(error)
}

/// Applies the options that differ from the image's.
fn amend(opened: &Opened, options: &FormatOptions, progress: &Progress) -> Result<()> {
    let image = &opened.image;
    let describe_error = |error: qcow::Error| anyhow!("{}", describe(&error, image.path()));
    let info = opened.info()?;
    let qcow2 = info.qcow2.as_ref().ok_or_else(|| anyhow!("Not qcow2"))?;
    let version = version(options.text("compat"))?.unwrap_or(qcow2.version);
    check(options, opened)?;
    if version > qcow2.version {
        image.set_version(version).map_err(describe_error)?;
    }
    if let Some(bits) = options.number("refcount_bits") {
        let bits = u32::try_from(bits)
            .ok()
            .filter(|&bits| bits.is_power_of_two() && bits <= 64);
        let bits = bits.ok_or_else(|| {
            anyhow!("Refcount width must be a power of two and may not exceed 64 bits")
        })?;
        ensure!(
            version >= 3 || bits == 16,
            "Refcount widths other than 16 bits require compatibility level 1.1 or above (use compat=1.1 or greater)"
        );
        image.set_refcount_bits(bits).map_err(describe_error)?;
    }
    if qcow2.data_file_raw && options.boolean("data_file_raw") == Some(false) {
        image.clear_data_file_raw().map_err(describe_error)?;
    }
    if let Some(name) = options.text("data_file") {
        image.set_data_file_name(name).map_err(describe_error)?;
    }
    if let Some(lazy) = options.boolean("lazy_refcounts") {
        ensure!(
            !lazy || version >= 3 || qcow2.lazy_refcounts,
            "Lazy refcounts only supported with compatibility level 1.1 and above (use compat=1.1 or greater)"
        );
        if version >= 3 {
            image.set_lazy_refcounts(lazy).map_err(describe_error)?;
        }
    }
    // A size of 0 is ignored, so that it cannot discard the disk.
    if let Some(size) = options.number("size").filter(|&size| size > 0) {
        resize(opened, size, Preallocation::Off)?;
    }
    if version < qcow2.version {
        let mut report = |done: u64, of: u64| progress.set(done as f32 * 100.0 / of as f32);
        image
            .set_version_reporting(version, &mut report)
            .map_err(|error| match snapshot_l1(&error, image.path()) {
                Some((what, why)) => {
                    report::error(what);
                    anyhow!("Failed to turn zero into data clusters: {why}")
                }
                None => describe_error(error),
            })?;
    }
    Ok(())
}

fn version(compat: Option<&str>) -> Result<Option<u32>> {
    match compat {
        None => Ok(None),
        Some("0.10" | "v2") => Ok(Some(2)),
        Some("1.1" | "v3") => Ok(Some(3)),
        Some(other) => bail!("Unknown compatibility level {other}"),
    }
}

/// Refuses what cannot be changed, before anything is changed.
fn check(options: &FormatOptions, opened: &Opened) -> Result<()> {
    let info = opened.info()?;
    let wanted = (options.text("backing_file"), options.text("backing_fmt"));
    let recorded = (
        info.backing_filename.as_deref(),
        info.backing_format.as_deref(),
    );
    // Giving only one of the two asks for the removal of the other.
    if wanted != (None, None) && wanted != recorded {
        return Err(Hinted {
            message: "Cannot amend the backing file".to_owned(),
            hint: "You can use 'qemu-img rebase' instead.".to_owned(),
        }
        .into());
    }
    let data_file = info
        .qcow2
        .as_ref()
        .and_then(|qcow2| qcow2.data_file.as_deref());
    let raw = info.qcow2.as_ref().is_some_and(|qcow2| qcow2.data_file_raw);
    ensure!(
        options.text("data_file").is_none() || data_file.is_some(),
        "data-file can only be set for images that use an external data file"
    );
    ensure!(
        options.boolean("data_file_raw") != Some(true) || raw,
        "data-file-raw cannot be set on existing images"
    );
    Ok(())
}
