//! `compare`: compares the disks of two images.

mod sides;

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use clap::Command;

use crate::command_line::cache::Cache;
use crate::command_line::getopt::Matches;
use crate::command_line::manual::Manual;
use crate::command_line::options::{self, flag, value};
use crate::command_line::source::Source;
use crate::confine;
use crate::open::{self, Opened, Opening};
use crate::output;
use crate::output::progress::Progress;
use crate::output::report::{self, Usage};
use crate::signals::Signals;

use sides::{Side, Sides};

pub(crate) const NAME: &str = "compare";

const DIFFERENT: u8 = 1;
const NOT_OPENED: u8 = 2;

pub(super) const MANUAL: Manual = Manual {
    about: "Find out whether two images hold the same disk",
    description: "Compares what a guest would read. A shorter disk is the same as a longer one if the rest of that \
        is zeroes; -s asks for equal sizes and allocation, too.",
    statuses: &[
        (0, "the images show the same disk"),
        (1, "they differ"),
        (2, "one of them cannot be opened"),
        (3, "what is allocated cannot be found out"),
        (4, "an image cannot be read"),
    ],
    examples: &[(
        "Compare a copy with its source",
        "image-tool compare -f raw -F qcow2 disk.raw disk.qcow2",
    )],
};

pub(crate) fn command() -> Command {
    options::command(NAME, &MANUAL)
        .arg(options::quiet())
        .arg(options::progress())
        .arg(value("a-format", 'f', "FMT", "format of the first image").alias("left-format"))
        .arg(value("b-format", 'F', "FMT", "format of the second image").alias("right-format"))
        .arg(options::image_opts())
        .arg(flag("strict", 's', "compare sizes and allocation, too"))
        .arg(value(
            "cache",
            'T',
            "CACHE_MODE",
            "cache mode (default: writeback)",
        ))
        .arg(options::force_share())
        .arg(options::object())
        .arg(options::operands("FILENAME", "the two images"))
}

pub(crate) fn run(matches: &Matches) -> Result<ExitCode> {
    let quiet = matches.flag("quiet");
    if let Err(error) = options::secrets(matches) {
        let status = report(Verdict::Failed(NOT_OPENED, error.to_string()), quiet);
        return Ok(ExitCode::from(status));
    }
    let [first, second] = matches.operands() else {
        return Err(Usage::of(NAME, "Expecting two image file names"));
    };
    let progress = Arc::new(Progress::new(matches.flag("progress") && !quiet, 2.0));
    let opening = Opening::shared(matches.flag("force-share"));
    let open = |name, format: &str| -> Result<Opened> {
        let source = Source::parse(
            name,
            matches.text(format).as_deref(),
            matches.flag("image-opts"),
        )?;
        open::open(&source, &opening)
    };
    let signals = Signals::block()?;
    let images = options::cache(matches, "cache", Cache::Durable, "source cache option")
        .and_then(|_| Ok((open(first, "a-format")?, open(second, "b-format")?)));
    let outcome = match images {
        Ok((a, b)) => {
            confine::enter(&[]);
            signals.handle_in_thread(progress.clone())?;
            let sides = Sides {
                a: Side::new(a.disk(), first),
                b: Side::new(b.disk(), second),
                strict: matches.flag("strict"),
                progress: &progress,
            };
            sides.compare()
        }
        Err(error) => Verdict::Failed(NOT_OPENED, error.to_string()),
    };
    let status = report(outcome, quiet);
    progress.end();
    Ok(ExitCode::from(status))
}

/// The result of a comparison.
#[derive(Debug)]
enum Verdict {
    Same { sizes_differ: bool },
    Different { sizes_differ: bool, why: String },
    Failed(u8, String),
}

/// Prints a verdict and returns its status.
fn report(verdict: Verdict, quiet: bool) -> u8 {
    match verdict {
        Verdict::Same { sizes_differ } => {
            warn_of_sizes(sizes_differ, quiet);
            output::announce(quiet, "Images are identical.");
            0
        }
        Verdict::Different { sizes_differ, why } => {
            warn_of_sizes(sizes_differ, quiet);
            output::announce(quiet, &why);
            DIFFERENT
        }
        Verdict::Failed(status, message) => {
            report::error(message);
            status
        }
    }
}

fn warn_of_sizes(differ: bool, quiet: bool) {
    if differ {
        output::announce(quiet, "Warning: Image size mismatch!");
    }
}
