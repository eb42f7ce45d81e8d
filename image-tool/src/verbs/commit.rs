//! `commit`: writes the content of an overlay to an image of its backing chain.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Result, anyhow, bail};
use clap::Command;
use qcow::{Image, Preallocation};

use crate::command_line::cache::Cache;
use crate::command_line::getopt::Matches;
use crate::command_line::manual::{DONE_OR_FAILED, Manual};
use crate::command_line::options::{self, flag, value};
use crate::command_line::source::{Source, relative_to};
use crate::confine;
use crate::copy::workers;
use crate::copy::{self, Copy, Failure, Input, Order, Plan};
use crate::open::{self, Opened, Opening};
use crate::output;
use crate::output::errors::cause;
use crate::output::progress::Progress;
use crate::signals::Signals;
use crate::verbs::close;

pub(crate) const NAME: &str = "commit";

/// The longest piece of data.
const PIECE: u64 = 1 << 20;

pub(super) const MANUAL: Manual = Manual {
    about: "Write the changes in an overlay to an image of its backing chain",
    description: "Copies what the overlay holds into its backing file, or with -b into an image further down the \
        chain. The overlay is then emptied, unless -d or -b is given.",
    statuses: DONE_OR_FAILED,
    examples: &[
        (
            "Write the changes into the backing file",
            "image-tool commit -f qcow2 overlay.qcow2",
        ),
        (
            "The same, and keep the overlay as it is",
            "image-tool commit -f qcow2 -d overlay.qcow2",
        ),
    ],
};

pub(crate) fn command() -> Command {
    options::command(NAME, &MANUAL)
        .arg(options::quiet())
        .arg(options::progress())
        .arg(options::format())
        .arg(options::image_opts())
        .arg(value(
            "cache",
            't',
            "CACHE_MODE",
            "cache mode (default: writeback)",
        ))
        .arg(flag("drop", 'd', "keep the content of the overlay"))
        .arg(value(
            "base",
            'b',
            "BASE_IMG",
            "image of the chain to commit to (default: the backing file)",
        ))
        .arg(value("rate", 'r', "RATE", "limit in bytes per second"))
        .arg(options::object())
        .arg(options::operand("FILENAME", "the overlay"))
}

pub(crate) fn run(matches: &Matches) -> Result<ExitCode> {
    let quiet = matches.flag("quiet");
    let rate = matches
        .text("rate")
        .map(|rate| options::size("rate limit", &rate))
        .transpose()?;
    options::secrets(matches)?;
    let name = options::one_image(NAME, matches)?;
    options::cache(matches, "cache", Cache::Durable, "cache option")?;
    let signals = Signals::block()?;
    let source = options::source(matches, name)?;
    let progress = Arc::new(Progress::new(matches.flag("progress") && !quiet, 1.0));
    let writable = Opening::writable();
    let opened = open::open(&source, &writable)?;
    let depth = depth_of_base(&source, &opened, matches.text("base").as_deref());
    close(opened)?;
    let depth = depth.inspect_err(|_| {
        progress.set(0.0);
        progress.end();
    })?;
    let top = open::open(
        &source,
        &Opening {
            writable_at: Some(depth),
            ..writable
        },
    )?;
    confine::enter(&[]);
    signals.handle_in_thread(progress.clone())?;
    progress.set(0.0);
    // After a commit to a deeper image, the images between may hide the data, so the overlay must keep it.
    let keep = matches.flag("drop") || matches.flag("base");
    let outcome = commit(top, depth, rate, keep, &progress);
    if outcome.is_ok() {
        progress.set(100.0);
    }
    progress.end();
    outcome?;
    output::announce(quiet, "Image committed.");
    Ok(ExitCode::SUCCESS)
}

/// The depth of the base in the overlay's chain.
fn depth_of_base(source: &Source, opened: &Opened, base: Option<&str>) -> Result<usize> {
    let chain = chain(opened);
    let Some(base) = base else {
        if chain.len() < 2 {
            bail!("Image does not have a backing file");
        }
        return Ok(1);
    };
    let full = relative_to(&source.path, base)?;
    let wanted = std::fs::canonicalize(&full).ok();
    chain
        .iter()
        .skip(1)
        .position(|image| {
            image.path() == full
                || (wanted.is_some() && std::fs::canonicalize(image.path()).ok() == wanted)
        })
        .map(|index| index + 1)
        .ok_or_else(|| {
            anyhow!(
                "Did not find '{base}' in the backing chain of '{}'",
                source.text
            )
        })
}

/// The images of a chain, from the top.
fn chain(opened: &Opened) -> Vec<&Image> {
    let mut images = vec![&*opened.image];
    while let Some(backing) = images.last().and_then(|image| image.backing()) {
        images.push(backing);
    }
    images
}

fn commit(
    top: Opened,
    depth: usize,
    rate: Option<u64>,
    keep: bool,
    progress: &Progress,
) -> Result<()> {
    let chain = chain(&top);
    let base = *chain
        .get(depth)
        .ok_or_else(|| anyhow!("Image does not have a backing file"))?;
    let failed = |image: &Image, error: &qcow::Error| {
        anyhow!("Block job failed: {}", cause(error, image.path()))
    };
    let size = top.disk().size();
    if base.virtual_size() < size {
        base.resize(size, Preallocation::Off)
            .map_err(|error| failed(base, &error))?;
    }
    let input = Input::new([top.image.clone()]);
    let mut plan = Plan::new(PIECE);
    plan.backing_depth = u32::try_from(depth).ok();
    let copy = Copy {
        input: &input,
        target: base,
        sparse: None,
        zeroes_as_data: false,
        target_is_zero: false,
        compressed: false,
        salvage: None,
        offload: false,
        order: Order::Any,
        threads: workers::processors(),
        durable: true,
        rate,
        progress,
        total: input.len(),
    };
    copy::run(&copy, plan).map_err(|failure| match failure {
        Failure::Status(_, error) | Failure::Read(_, error) => failed(&top.image, &error),
        Failure::Missing(offset) => anyhow!(
            "Block job failed: the data at offset {offset} lies past the end of the file '{}'",
            top.image.path().display()
        ),
        Failure::Write(_, error) => failed(base, &error),
    })?;
    // The data must be durable in the base before it is removed from the overlay.
    base.flush().map_err(|error| failed(base, &error))?;
    drop(input);
    if !keep && top.image.format().has_backing() {
        top.image
            .make_empty()
            .map_err(|error| failed(&top.image, &error))?;
    }
    close(top)
}
