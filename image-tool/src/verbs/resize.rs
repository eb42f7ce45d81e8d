//! `resize`: changes the size of the disk.

use std::process::ExitCode;

use anyhow::{Result, anyhow, bail};
use clap::Command;
use qcow::{ErrorKind, Preallocation};

use crate::command_line::format_options::{
    FormatOptions, Kind, Spec, check_preallocation, preallocation,
};
use crate::command_line::getopt::Matches;
use crate::command_line::manual::{DONE_OR_FAILED, Manual};
use crate::command_line::options::{self, flag, value};
use crate::command_line::size::MAX_DISK;
use crate::confine;
use crate::open::{self, Opened, Opening};
use crate::output;
use crate::output::errors::{cause, describe};
use crate::output::report::{self, Usage};
use crate::verbs::close;

pub(crate) const NAME: &str = "resize";

/// The size, parsed as a format option.
const SIZE: Spec = Spec {
    name: "size",
    kind: Kind::Size,
    default: None,
    help: "",
};

pub(super) const MANUAL: Manual = Manual {
    about: "Make the disk of an image longer or shorter",
    description: "Changes the size of the disk, not of partitions and file systems on it: shrink those before the \
        disk, and grow them after it.",
    statuses: DONE_OR_FAILED,
    examples: &[
        ("Add 1 GiB", "image-tool resize -f qcow2 disk.qcow2 +1G"),
        (
            "Cut a disk off at 512 KiB",
            "image-tool resize -f raw --shrink disk.raw 512k",
        ),
    ],
};

pub(crate) fn command() -> Command {
    options::command(NAME, &MANUAL)
        .arg(options::quiet())
        .arg(options::format())
        .arg(options::image_opts())
        .arg(flag(
            "shrink",
            None,
            "allow a smaller size; data beyond the new end is lost",
        ))
        .arg(value(
            "preallocation",
            None,
            "PREALLOC",
            "allocation of the added part: off, metadata, falloc or full",
        ))
        .arg(options::object())
        .arg(options::operand("FILENAME", "the image"))
        .arg(options::operand(
            "SIZE",
            "the new size, or +SIZE or -SIZE to add or subtract",
        ))
}

pub(crate) fn run(matches: &Matches) -> Result<ExitCode> {
    let quiet = matches.flag("quiet");
    options::secrets(matches)?;
    let mode = matches.text("preallocation");
    let preallocation = preallocation(mode.as_deref())
        .map_err(|_| anyhow!("Invalid preallocation mode '{}'", mode.unwrap_or_default()))?;
    let (name, size) = match matches.operands() {
        [name, size] => (name, size.to_string_lossy()),
        [_, _, _, ..] => return Err(Usage::of(NAME, "Extra argument(s) in command line")),
        _ => return Err(Usage::of(NAME, "Expecting image file name and size")),
    };
    let change = Change::parse(&size)?;
    let source = options::source(matches, name)?;
    let opened = open::open(&source, &Opening::writable())?;
    confine::enter(&[]);
    let current = opened.disk().size();
    let wanted = change
        .from(current)
        .ok_or_else(|| anyhow!("New image size must be positive"))?;
    if wanted <= current && preallocation != Preallocation::Off {
        bail!("Preallocation can only be used for growing images");
    }
    if wanted < current && !matches.flag("shrink") {
        report::error("Use the --shrink option to perform a shrink operation.");
        report::warning(
            "Shrinking an image will delete all data beyond the shrunken image's end. Before performing such an \
             operation, make sure there is no important data there.",
        );
        return Ok(ExitCode::FAILURE);
    }
    check_preallocation(opened.image.format(), preallocation)?;
    resize(&opened, wanted, preallocation)?;
    close(opened)?;
    output::announce(quiet, "Image resized.");
    Ok(ExitCode::SUCCESS)
}

/// Changes the size; errors have QEMU's words.
pub(crate) fn resize(opened: &Opened, size: u64, preallocation: Preallocation) -> Result<()> {
    if size > MAX_DISK {
        bail!("offset({size}) exceeds maximum({MAX_DISK})");
    }
    let info = opened.info()?;
    let is_v2 = info.qcow2.is_some_and(|qcow2| qcow2.version < 3);
    if is_v2 && !info.snapshots.is_empty() {
        bail!("Can't resize a v2 image which has snapshots");
    }
    let is_raw = !opened.image.format().has_metadata();
    opened.image.resize(size, preallocation).map_err(|error| {
        if is_raw && error.raw_os_error().is_some() {
            let why = cause(&error, opened.image.path());
            return anyhow!("Could not resize file: {why}");
        }
        match (error.kind(), error.raw_os_error()) {
            // The host's limit of file sizes.
            (_, Some(libc::EFBIG)) => anyhow!("Allocating clusters failed: File too large"),
            (ErrorKind::TooLarge, _) => anyhow!("Failed to grow the L1 table: File too large"),
            _ => anyhow!("{}", describe(&error, opened.image.path())),
        }
    })
}

/// The new size, absolute or relative.
#[derive(Debug, Clone, Copy)]
enum Change {
    To(u64),
    Grow(u64),
    Shrink(u64),
}

impl Change {
    fn parse(text: &str) -> Result<Self> {
        let (make, number): (fn(u64) -> Self, _) = match text.split_at_checked(1) {
            Some(("+", rest)) => (Self::Grow, rest),
            Some(("-", rest)) => (Self::Shrink, rest),
            _ => (Self::To, text),
        };
        let mut options = FormatOptions::new(vec![SIZE]);
        options.set("size", number)?;
        Ok(make(options.number("size").unwrap_or(0)))
    }

    /// The new size, unless it is out of range.
    fn from(self, current: u64) -> Option<u64> {
        let wanted = match self {
            Self::To(size) => Some(size),
            Self::Grow(more) => current.checked_add(more),
            Self::Shrink(less) => current.checked_sub(less),
        };
        wanted.filter(|&size| size > 0 && i64::try_from(size).is_ok())
    }
}
