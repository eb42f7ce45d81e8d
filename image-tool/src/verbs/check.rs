//! `check`: checks and repairs the metadata of an image.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Command;
use qcow::{CheckResult, Repair};

use crate::command_line::cache::Cache;
use crate::command_line::getopt::Matches;
use crate::command_line::manual::Manual;
use crate::command_line::options;
use crate::confine;
use crate::open::{self, Opened, Opening};
use crate::output;
use crate::output::errors;
use crate::output::json::Object;
use crate::output::report::{self, Usage};
use crate::verbs::close;

pub(crate) const NAME: &str = "check";

/// The status for a format without checks.
const UNSUPPORTED: u8 = 63;
const CORRUPT: u8 = 2;
const LEAKS: u8 = 3;

pub(super) const MANUAL: Manual = Manual {
    about: "Look for errors in the metadata of an image, and repair them",
    description: "Reads all tables of a qcow2 image and compares its reference counts with the clusters in use. \
        Only the image itself is opened, not its backing file.",
    statuses: &[
        (0, "nothing is wrong, or everything was repaired"),
        (1, "the check could not be completed"),
        (2, "the image is damaged"),
        (3, "clusters are leaked, and nothing else is wrong"),
        (63, "images of this format cannot be checked"),
    ],
    examples: &[
        ("Check an image", "image-tool check disk.qcow2"),
        (
            "Free leaked clusters, and change nothing else",
            "image-tool check -r leaks disk.qcow2",
        ),
        (
            "Repair everything that can be repaired",
            "image-tool check -r all disk.qcow2",
        ),
    ],
};

pub(crate) fn command() -> Command {
    options::command(NAME, &MANUAL)
        .arg(options::quiet())
        .arg(options::format())
        .arg(options::image_opts())
        .arg(options::value(
            "cache",
            'T',
            "CACHE_MODE",
            "cache mode (default: writeback)",
        ))
        .arg(options::force_share())
        .arg(options::output())
        .arg(options::value(
            "repair",
            'r',
            "leaks|all",
            "repair leaked clusters only, or everything",
        ))
        .arg(options::object())
        .arg(options::operand("FILENAME", "the image"))
}

pub(crate) fn run(matches: &Matches) -> Result<ExitCode> {
    let quiet = matches.flag("quiet");
    let repair = repair(matches)?;
    let form = options::output_of(NAME, matches)?;
    options::secrets(matches)?;
    let name = options::one_image(NAME, matches)?;
    options::cache(matches, "cache", Cache::Durable, "source cache option")?;
    let source = options::source(matches, name)?;
    let opened = open::open(
        &source,
        &Opening {
            writable: repair != Repair::None,
            share: matches.flag("force-share"),
            alone: true,
            for_check: true,
            ..Opening::default()
        },
    )?;
    confine::enter(&[]);
    if !opened.image.format().has_checks() {
        report::error("This image format does not support checks");
        return Ok(ExitCode::from(UNSUPPORTED));
    }
    let result = check(&opened, repair, form == output::Format::Human && !quiet)?;
    let text = match form {
        output::Format::Json => json(&source.text, &result).pretty(),
        output::Format::Human => human(&result),
    };
    if !quiet {
        output::line(text.trim_end_matches('\n'));
    }
    close(opened)?;
    status(&result)
}

fn repair(matches: &Matches) -> Result<Repair> {
    match matches.text("repair").as_deref() {
        None => Ok(Repair::None),
        Some("leaks") => Ok(Repair::Leaks),
        Some("all") => Ok(Repair::All),
        Some(other) => Err(Usage::of(
            NAME,
            format!("--repair (-r) expects 'leaks' or 'all' not '{other}'"),
        )),
    }
}

/// Checks, and checks again if something was repaired; the result is what then remains.
fn check(opened: &Opened, repair: Repair, prints: bool) -> Result<CheckResult> {
    let first = check_once(opened, repair)?;
    if first.corruptions_fixed == 0 && first.leaks_fixed == 0 {
        return Ok(first);
    }
    let repaired = format!(
        "The following inconsistencies were found and repaired:\n\n    {} leaked clusters\n    {} corruptions\n\n\
         Double checking the fixed image now...",
        first.leaks_fixed, first.corruptions_fixed
    );
    // Unless it is a terminal, standard output gets it after all findings, as from qemu-img, whose output is buffered.
    let at_once = std::io::stdout().is_terminal();
    if prints && at_once {
        output::line(&repaired);
    }
    let second = check_once(opened, Repair::None);
    if prints && !at_once {
        output::line(&repaired);
    }
    let second = second?;
    Ok(CheckResult {
        leaks_fixed: first.leaks_fixed,
        corruptions_fixed: first.corruptions_fixed,
        ..second
    })
}

fn check_once(opened: &Opened, repair: Repair) -> Result<CheckResult> {
    let result = opened.image.check(repair).map_err(|error| {
        anyhow::anyhow!(
            "Check failed: {}",
            errors::cause(&error, opened.image.path())
        )
    })?;
    for message in &result.messages {
        // QEMU prints these as errors with the program's name, not as findings.
        if message.starts_with("ERROR failed to read the snapshot table")
            || message.starts_with("ERROR snapshot table")
        {
            report::error(message);
        } else {
            output::notice(message);
        }
    }
    if let Some(why) = &result.unfinished {
        bail!("Check failed: {why}");
    }
    Ok(result)
}

fn status(result: &CheckResult) -> Result<ExitCode> {
    if result.check_errors > 0 {
        bail!("Check failed");
    }
    Ok(match result {
        CheckResult {
            corruptions: 1.., ..
        } => ExitCode::from(CORRUPT),
        CheckResult { leaks: 1.., .. } => ExitCode::from(LEAKS),
        _ => ExitCode::SUCCESS,
    })
}

fn human(result: &CheckResult) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    if result.corruptions == 0 && result.leaks == 0 && result.check_errors == 0 {
        text.push_str("No errors were found on the image.\n");
    }
    if result.corruptions > 0 {
        let _ = writeln!(
            text,
            "\n{} errors were found on the image.\nData may be corrupted, or further writes to the image may corrupt it.",
            result.corruptions
        );
    }
    if result.leaks > 0 {
        let _ = writeln!(
            text,
            "\n{} leaked clusters were found on the image.\nThis means waste of disk space, but no harm to data.",
            result.leaks
        );
    }
    if result.check_errors > 0 {
        let _ = writeln!(
            text,
            "\n{} internal errors have occurred during the check.",
            result.check_errors
        );
    }
    if result.total_clusters != 0 && result.allocated_clusters != 0 {
        let percent = |part: u64, whole: u64| part as f64 * 100.0 / whole as f64;
        let _ = writeln!(
            text,
            "{}/{} = {:.2}% allocated, {:.2}% fragmented, {:.2}% compressed clusters",
            result.allocated_clusters,
            result.total_clusters,
            percent(result.allocated_clusters, result.total_clusters),
            percent(result.fragmented_clusters, result.allocated_clusters),
            percent(result.compressed_clusters, result.allocated_clusters),
        );
    }
    if result.image_end_offset != 0 {
        let _ = writeln!(text, "Image end offset: {}", result.image_end_offset);
    }
    text
}

fn json(filename: &str, result: &CheckResult) -> crate::output::json::Value {
    let unless_zero = |value: u64| (value != 0).then_some(value);
    Object::new()
        .with("filename", filename)
        .with("format", "qcow2")
        .with("check-errors", result.check_errors)
        .with_some("image-end-offset", unless_zero(result.image_end_offset))
        .with_some("corruptions", unless_zero(result.corruptions))
        .with_some("leaks", unless_zero(result.leaks))
        .with_some("corruptions-fixed", unless_zero(result.corruptions_fixed))
        .with_some("leaks-fixed", unless_zero(result.leaks_fixed))
        .with_some("total-clusters", unless_zero(result.total_clusters))
        .with_some("allocated-clusters", unless_zero(result.allocated_clusters))
        .with_some(
            "fragmented-clusters",
            unless_zero(result.fragmented_clusters),
        )
        .with_some(
            "compressed-clusters",
            unless_zero(result.compressed_clusters),
        )
        .into()
}
