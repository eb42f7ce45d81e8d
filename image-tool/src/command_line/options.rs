//! The options that several verbs share: their definitions, and reading their values.

use std::ffi::OsStr;

use anyhow::{Result, anyhow};
use clap::{Arg, ArgAction, Command, ValueHint};
use qcow::Format;

use super::cache::Cache;
use super::getopt::Matches;
use super::manual::Manual;
use super::object;
use super::size::{self, SizeError};
use super::source::Source;
use crate::output;
use crate::output::report::Usage;

/// A verb's command, with `--help`.
pub(crate) fn command(name: &'static str, manual: &Manual) -> Command {
    Command::new(name)
        .about(manual.about)
        .long_about(format!("{}.\n\n{}", manual.about, manual.description))
        .after_long_help(manual.after_options())
        .disable_help_flag(true)
        .arg(flag("help", Some('h'), "show this text"))
}

/// An option without a value.
pub(crate) fn flag(name: &'static str, short: impl Into<Option<char>>, help: &'static str) -> Arg {
    let arg = Arg::new(name)
        .long(name)
        .action(ArgAction::SetTrue)
        .help(help);
    with_short(arg, short.into())
}

/// An option with a value.
pub(crate) fn value(
    name: &'static str,
    short: impl Into<Option<char>>,
    what: &'static str,
    help: &'static str,
) -> Arg {
    let arg = Arg::new(name)
        .long(name)
        .action(ArgAction::Append)
        .value_name(what)
        .help(help)
        .allow_hyphen_values(true);
    let arg = match possible_values(what) {
        none if none.is_empty() => arg,
        values => arg.value_parser(values).hide_possible_values(true),
    };
    with_short(arg, short.into())
}

/// The values that completions offer, by the value's name.
fn possible_values(what: &'static str) -> Vec<&'static str> {
    const CACHES: [&str; 5] = ["none", "writeback", "writethrough", "directsync", "unsafe"];
    match what {
        "PREALLOC" => vec!["off", "metadata", "falloc", "full"],
        _ if what.ends_with("FMT") => Format::NAMES.to_vec(),
        _ if what.contains("CACHE") => CACHES.to_vec(),
        _ if what.contains('|') => what.split('|').collect(),
        _ => Vec::new(),
    }
}

fn with_short(arg: Arg, short: Option<char>) -> Arg {
    match short {
        Some(letter) => arg.short(letter),
        None => arg,
    }
}

/// An option without a value and without a long name.
pub(crate) fn short_flag(name: &'static str, short: char, help: &'static str) -> Arg {
    Arg::new(name)
        .short(short)
        .action(ArgAction::SetTrue)
        .help(help)
}

/// An argument that is not an option.
pub(crate) fn operand(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .value_name(name)
        .help(help)
        .value_hint(ValueHint::AnyPath)
}

/// Any number of operands.
pub(crate) fn operands(name: &'static str, help: &'static str) -> Arg {
    operand(name, help).num_args(0..)
}

pub(crate) fn format() -> Arg {
    value(
        "format",
        'f',
        "FMT",
        "format of the image (default: probed)",
    )
}

pub(crate) fn image_opts() -> Arg {
    flag(
        "image-opts",
        None,
        "the operand is a list of options (driver=qcow2,file.filename=…), not a file name",
    )
}

pub(crate) fn force_share() -> Arg {
    flag(
        "force-share",
        'U',
        "open the image although another process may write it",
    )
}

pub(crate) fn quiet() -> Arg {
    flag("quiet", 'q', "print errors only")
}

pub(crate) fn progress() -> Arg {
    flag("progress", 'p', "print progress in percent")
}

pub(crate) fn output() -> Arg {
    value(
        "output",
        None,
        "human|json",
        "output for people or for programs (default: human)",
    )
}

pub(crate) fn object() -> Arg {
    value(
        "object",
        None,
        "OBJDEF",
        "define a secret, whose content is not read; other objects are refused",
    )
}

/// The value of `--output`.
pub(crate) fn output_of(verb: &'static str, matches: &Matches) -> Result<output::Format> {
    match matches.text("output").as_deref() {
        None | Some("human") => Ok(output::Format::Human),
        Some("json") => Ok(output::Format::Json),
        Some(other) => Err(Usage::of(
            verb,
            format!("--output expects 'human' or 'json' not '{other}'"),
        )),
    }
}

/// The ids of the secrets that `--object` defines.
pub(crate) fn secrets(matches: &Matches) -> Result<Vec<String>> {
    object::secrets(&matches.texts("object"))
}

/// The image of this name, with `--format` and `--image-opts`.
pub(crate) fn source(matches: &Matches, name: &OsStr) -> Result<Source> {
    Source::parse(
        name,
        matches.text("format").as_deref(),
        matches.flag("image-opts"),
    )
}

/// The operand of a verb that takes one image.
pub(crate) fn one_image<'a>(verb: &'static str, matches: &'a Matches) -> Result<&'a OsStr> {
    match matches.operands() {
        [only] => Ok(only),
        _ => Err(Usage::of(verb, "Expecting one image file name")),
    }
}

/// The cache mode of an option; an error names it `what`.
pub(crate) fn cache(matches: &Matches, option: &str, default: Cache, what: &str) -> Result<Cache> {
    match matches.text(option) {
        None => Ok(default),
        Some(mode) => Cache::parse(&mode).ok_or_else(|| anyhow!("Invalid {what}: {mode}")),
    }
}

/// A number within limits; an error names it `what`.
pub(crate) fn number(what: &str, text: &str, min: u64, max: u64) -> Result<u64> {
    let trimmed = text.trim_start();
    let below_zero =
        |digits: &str| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    if trimmed.strip_prefix('-').is_some_and(below_zero) {
        return within(what, text, Err(SizeError::OutOfRange), min, max);
    }
    within(what, text, size::integer(trimmed), min, max)
}

/// A size; an error names it `what`.
pub(crate) fn size(what: &str, text: &str) -> Result<u64> {
    size_within(what, text, 0, i64::MAX.unsigned_abs())
}

/// A size within limits; an error names it `what`.
pub(crate) fn size_within(what: &str, text: &str, min: u64, max: u64) -> Result<u64> {
    within(what, text, size::parse(text), min, max)
}

fn within(
    what: &str,
    text: &str,
    parsed: Result<u64, SizeError>,
    min: u64,
    max: u64,
) -> Result<u64> {
    match parsed {
        Err(SizeError::Invalid) => Err(anyhow!("Invalid {what} specified: '{text}'.")),
        Ok(value) if (min..=max).contains(&value) => Ok(value),
        Ok(_) | Err(SizeError::OutOfRange) => Err(anyhow!(
            "Invalid {what} specified. Must be between {min} and {max}."
        )),
    }
}
