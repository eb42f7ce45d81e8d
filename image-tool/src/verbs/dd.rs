//! `dd`: copies a range of an image to a new one.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;

use anyhow::{Result, anyhow, bail};
use clap::Command;
use qcow::{CreateOptions, Image};

use crate::command_line::format_options::{self, empty_file};
use crate::command_line::getopt::Matches;
use crate::command_line::manual::{DONE_OR_FAILED, Manual};
use crate::command_line::options::{self, value};
use crate::command_line::source::local_path;
use crate::confine;
use crate::open::disk::Disk;
use crate::open::{self, Opening};
use crate::output::errors::cause;
use crate::output::progress::Progress;
use crate::output::report;
use crate::signals::Signals;
use crate::target::Target;
use crate::verbs::{close, create};

pub(crate) const NAME: &str = "dd";

/// The largest block.
const MAX_BLOCK: u64 = i32::MAX as u64;
/// The largest number of blocks, which has no suffix.
const MAX_COUNT: u64 = i64::MAX as u64;
/// Bytes that are copied at a time, whatever the block size.
const CHUNK: u64 = 1 << 20;

pub(super) const MANUAL: Manual = Manual {
    about: "Copy some blocks of an image to a new image",
    description: "Reads count blocks of bs bytes, after skip blocks, and makes a new image of them.",
    statuses: DONE_OR_FAILED,
    examples: &[(
        "Extract the first sector of a disk",
        "image-tool dd -f qcow2 -O raw bs=512 count=1 if=disk.qcow2 of=sector.raw",
    )],
};

pub(crate) fn command() -> Command {
    options::command(NAME, &MANUAL)
        .arg(options::format())
        .arg(options::image_opts())
        .arg(options::force_share())
        .arg(options::object())
        .arg(value(
            "output-format",
            'O',
            "OUTPUT_FMT",
            "format of the output (default: raw)",
        ))
        .arg(options::operand("if=INPUT", "the image to read"))
        .arg(options::operand("of=OUTPUT", "the file to create"))
        .arg(options::operand(
            "bs=SIZE",
            "size of a block (default: 512)",
        ))
        .arg(options::operand("count=N", "blocks to copy (default: all)"))
        .arg(options::operand(
            "skip=N",
            "blocks to skip at the start of the input",
        ))
}

/// The operands.
#[derive(Debug, Default)]
struct Operands {
    input: Option<OsString>,
    output: Option<OsString>,
    block: Option<u64>,
    count: Option<u64>,
    skip: Option<u64>,
}

impl Operands {
    fn read(operands: &[OsString]) -> Result<Self> {
        let mut read = Self::default();
        for operand in operands {
            let bytes = operand.as_bytes();
            let unrecognized =
                |name: &[u8]| anyhow!("unrecognized operand {}", String::from_utf8_lossy(name));
            let at = bytes
                .iter()
                .position(|&b| b == b'=')
                .ok_or_else(|| unrecognized(bytes))?;
            let (name, value) = (
                bytes.get(..at).unwrap_or_default(),
                bytes.get(at + 1..).unwrap_or_default(),
            );
            let text = String::from_utf8_lossy(value);
            match name {
                b"if" => read.input = Some(OsStr::from_bytes(value).to_owned()),
                b"of" => read.output = Some(OsStr::from_bytes(value).to_owned()),
                b"bs" => read.block = Some(options::size_within("bs", &text, 1, MAX_BLOCK)?),
                b"count" => read.count = Some(options::number("count", &text, 0, MAX_COUNT)?),
                b"skip" => read.skip = Some(options::number("skip", &text, 0, MAX_COUNT)?),
                other => return Err(unrecognized(other)),
            }
        }
        Ok(read)
    }
}

pub(crate) fn run(matches: &Matches) -> Result<ExitCode> {
    options::secrets(matches)?;
    let operands = Operands::read(matches.operands())?;
    let (Some(input), Some(output)) = (&operands.input, &operands.output) else {
        bail!("Must specify both input and output files");
    };
    let signals = Signals::block()?;
    let source = options::source(matches, input)?;
    let opened = open::open(&source, &Opening::shared(matches.flag("force-share")))?;
    let format = matches
        .text("output-format")
        .unwrap_or_else(|| "raw".to_owned());
    let format = format_options::new_format(&format).ok_or_else(|| {
        match format_options::is_only_read(&format) {
            true => format_options::not_creatable(&format),
            false => anyhow!("Unknown file format"),
        }
    })?;

    let block = operands.block.unwrap_or(512);
    let size = opened.disk().size();
    let end = operands
        .count
        .and_then(|count| count.checked_mul(block))
        .map_or(size, |bytes| bytes.min(size));
    let start = operands
        .skip
        .unwrap_or(0)
        .checked_mul(block)
        .filter(|&start| start <= end);
    let shown = output.to_string_lossy();
    let failed =
        |error: anyhow::Error| anyhow!("{shown}: error while creating output image: {error}");
    let length = end - start.unwrap_or(end);
    let streams = (!format.has_metadata()).then_some(&signals);
    let mut target = Target::prepare(&local_path(output)?, streams).map_err(failed)?;
    target
        .check_sources(std::slice::from_ref(&opened))
        .map_err(failed)?;
    let rounded = length
        .checked_next_multiple_of(512)
        .ok_or_else(|| anyhow!("Image size is too large"))?;
    target
        .create(&CreateOptions {
            empty_file: empty_file::by_default(),
            ..CreateOptions::new(format, rounded)
        })
        .map_err(|error| {
            failed(anyhow!(
                "{}",
                create::describe_create_error(&error, format, &target)
            ))
        })?;
    let written = target.open(&shown, format, false)?;
    confine::enter(&target.folders());
    signals.handle_in_thread(Progress::new(false, 0.0).into())?;
    match start {
        Some(start) => copy(&opened.image, &written.image, start, end)?,
        None => report::error(format_args!(
            "{}: cannot skip to specified offset",
            input.to_string_lossy()
        )),
    }
    target.check_written()?;
    close(written)?;
    target.finish()?;
    Ok(ExitCode::SUCCESS)
}

fn copy(input: &Image, output: &Image, start: u64, end: u64) -> Result<()> {
    let mut buffer = vec![0; CHUNK as usize];
    let mut at = start;
    while at < end {
        let part = buffer
            .get_mut(..(end - at).min(CHUNK) as usize)
            .unwrap_or_default();
        Disk(input).read(at, part).map_err(|error| {
            anyhow!(
                "error while reading from input image file: {}",
                cause(&error, input.path())
            )
        })?;
        output.write_at(at - start, part).map_err(|error| {
            anyhow!(
                "error while writing to output image file: {}",
                cause(&error, output.path())
            )
        })?;
        at += part.len() as u64;
    }
    Ok(())
}
