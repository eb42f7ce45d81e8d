//! `bitmap`: changes the persistent dirty bitmaps of an image.

use std::process::ExitCode;

use anyhow::{Result, anyhow, bail, ensure};
use clap::Command;
use qcow::{ErrorKind, Image};

use crate::command_line::getopt::Matches;
use crate::command_line::manual::{DONE_OR_FAILED, Manual};
use crate::command_line::options::{self, flag, value};
use crate::command_line::source::Source;
use crate::confine;
use crate::open::{self, Opened, Opening};
use crate::output::errors::describe;
use crate::verbs::close;

pub(crate) const NAME: &str = "bitmap";

pub(super) const MANUAL: Manual = Manual {
    about: "Change the dirty bitmaps that a qcow2 image stores",
    description: "A dirty bitmap records which ranges of the disk were written, for incremental backups. Several \
        changes can be made in one call; they are made in the order of the command line.",
    statuses: DONE_OR_FAILED,
    examples: &[
        (
            "Record changes from now on",
            "image-tool bitmap --add -f qcow2 server.qcow2 tuesday",
        ),
        (
            "Add the changes of one bitmap to another",
            "image-tool bitmap --merge monday -f qcow2 server.qcow2 tuesday",
        ),
        (
            "Remove a bitmap",
            "image-tool bitmap --remove -f qcow2 server.qcow2 monday",
        ),
    ],
};

pub(crate) fn command() -> Command {
    options::command(NAME, &MANUAL)
        .arg(options::format())
        .arg(options::image_opts())
        .arg(flag(
            "add",
            None,
            "add the bitmap and start recording changes",
        ))
        .arg(value(
            "granularity",
            'g',
            "SIZE",
            "with --add: bytes of the disk per bit",
        ))
        .arg(flag("remove", None, "remove the bitmap"))
        .arg(flag("clear", None, "mark the whole disk as clean"))
        .arg(flag("enable", None, "start recording changes"))
        .arg(flag("disable", None, "stop recording changes"))
        .arg(value(
            "merge",
            None,
            "SOURCE",
            "mark as dirty what is dirty in this other bitmap",
        ))
        .arg(value(
            "source-file",
            'b',
            "SRC_FILENAME",
            "image that stores the other bitmap (default: this one)",
        ))
        .arg(value("source-format", 'F', "SRC_FMT", "its format"))
        .arg(options::object())
        .arg(options::operand("FILENAME", "the image"))
        .arg(options::operand("BITMAP", "name of the bitmap"))
}

/// One change; changes are made in the order of the command line.
#[derive(Debug)]
enum Action {
    Add,
    Remove,
    Clear,
    Enable,
    Disable,
    Merge(String),
}

impl Action {
    fn word(&self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Remove => "remove",
            Self::Clear => "clear",
            Self::Enable => "enable",
            Self::Disable => "disable",
            Self::Merge(_) => "merge",
        }
    }
}

fn actions(matches: &Matches) -> Vec<Action> {
    matches
        .all()
        .filter_map(|(option, value)| match option {
            "add" => Some(Action::Add),
            "remove" => Some(Action::Remove),
            "clear" => Some(Action::Clear),
            "enable" => Some(Action::Enable),
            "disable" => Some(Action::Disable),
            "merge" => Some(Action::Merge(value.to_string_lossy().into_owned())),
            _ => None,
        })
        .collect()
}

pub(crate) fn run(matches: &Matches) -> Result<ExitCode> {
    let actions = actions(matches);
    let granularity = matches
        .text("granularity")
        .map(|size| options::size("granularity", &size))
        .transpose()?
        .filter(|&granularity| granularity > 0);
    options::secrets(matches)?;
    if actions.is_empty() {
        bail!("Need at least one of --add, --remove, --clear, --enable, --disable, or --merge");
    }
    if granularity.is_some() && !actions.iter().any(|action| matches!(action, Action::Add)) {
        bail!("granularity only supported with --add");
    }
    let source_file = matches.value("source-file");
    if matches.flag("source-format") && source_file.is_none() {
        bail!("-F only supported with -b");
    }
    if source_file.is_some()
        && !actions
            .iter()
            .any(|action| matches!(action, Action::Merge(_)))
    {
        bail!("Merge bitmap source file only supported with --merge");
    }
    let [name, bitmap] = matches.operands() else {
        bail!("Expecting filename and bitmap name");
    };
    let Some(bitmap) = bitmap.to_str() else {
        bail!("The bitmap name '{}' is not valid UTF-8", bitmap.display());
    };
    let source = options::source(matches, name)?;
    let opened = open::open(
        &source,
        &Opening {
            writable: true,
            no_backing: true,
            ..Opening::default()
        },
    )?;
    let other = source_file
        .map(|name| open_other(name, matches.text("source-format").as_deref()))
        .transpose()?;
    confine::enter(&[]);
    let other = other.as_ref().map_or(&*opened.image, |other| &*other.image);
    for action in &actions {
        apply(action, &opened.image, other, bitmap, granularity).map_err(|why| {
            anyhow!(
                "Operation {} on bitmap {bitmap} failed: {why}",
                action.word()
            )
        })?;
    }
    close(opened)?;
    Ok(ExitCode::SUCCESS)
}

fn open_other(name: &std::ffi::OsStr, format: Option<&str>) -> Result<Opened> {
    let opening = Opening {
        no_backing: true,
        ..Opening::default()
    };
    open::open(&Source::from_name(name, format)?, &opening)
}

fn apply(
    action: &Action,
    image: &Image,
    other: &Image,
    bitmap: &str,
    granularity: Option<u64>,
) -> Result<()> {
    let describe_error = |error: qcow::Error| match error.kind() {
        ErrorKind::NotFound => not_found(bitmap),
        _ => anyhow!("{}", describe(&error, image.path())),
    };
    if !matches!(action, Action::Add) && image.format().has_bitmaps() && !has(image, bitmap)? {
        return Err(not_found(bitmap));
    }
    match action {
        Action::Add => return add(image, bitmap, granularity),
        Action::Remove => image.bitmap_remove(bitmap),
        Action::Clear => image.bitmap_clear(bitmap),
        Action::Enable => image.bitmap_enable(bitmap, true),
        Action::Disable => image.bitmap_enable(bitmap, false),
        Action::Merge(source) => return merge(image, bitmap, other, source),
    }
    .map_err(describe_error)
}

fn not_found(bitmap: &str) -> anyhow::Error {
    anyhow!("Dirty bitmap '{bitmap}' not found")
}

/// Whether the image has a bitmap of that name.
fn has(image: &Image, bitmap: &str) -> Result<bool> {
    let info = open::info(image)?;
    let bitmaps = info.qcow2.map(|qcow2| qcow2.bitmaps).unwrap_or_default();
    Ok(bitmaps.iter().any(|known| known.name == bitmap))
}

fn add(image: &Image, bitmap: &str, granularity: Option<u64>) -> Result<()> {
    if bitmap.is_empty() {
        bail!("Bitmap name cannot be empty");
    }
    let allowed = |bytes: u64| bytes.is_power_of_two() && (512..=1 << 31).contains(&bytes);
    if granularity.is_some_and(|bytes| !allowed(bytes)) {
        bail!("Granularity must be power of 2 and at least 512");
    }
    if !image.format().has_bitmaps() {
        bail!(
            "Can't store persistent bitmaps to {}: Operation not supported",
            image.path().display()
        );
    }
    if has(image, bitmap)? {
        bail!("Bitmap already exists: {bitmap}");
    }
    image
        .bitmap_add(bitmap, granularity, true)
        .map_err(|error| anyhow!("{}", describe(&error, image.path())))
}

/// Marks in `bitmap` what is dirty in the bitmap `source` of another image or of the same.
pub(crate) fn merge(image: &Image, bitmap: &str, other: &Image, source: &str) -> Result<()> {
    if !has(image, bitmap)? {
        return Err(not_found(bitmap));
    }
    if !has(other, source)? {
        return Err(not_found(source));
    }
    let (size, from) = (image.virtual_size(), other.virtual_size());
    ensure!(
        size == from,
        "Bitmaps are of different sizes (destination size is {size}, source size is {from}) and can't be merged"
    );
    let describe_error =
        |error: qcow::Error, image: &Image| anyhow!("{}", describe(&error, image.path()));
    let ranges = other
        .bitmap_ranges(source)
        .map_err(|error| describe_error(error, other))?;
    image
        .bitmap_merge(bitmap, ranges)
        .map_err(|error| describe_error(error, image))
}
