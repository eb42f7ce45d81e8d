//! `map`: lists the extents of a disk.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;

use anyhow::{Result, anyhow, bail};
use clap::Command;
use qcow::{Extent, Image};

use crate::command_line::getopt::Matches;
use crate::command_line::manual::{DONE_OR_FAILED, Manual};
use crate::command_line::options::{self, value};
use crate::command_line::source::Source;
use crate::confine;
use crate::open::disk::{Disk, whole_sectors};
use crate::open::{self, Opening};
use crate::output::errors::cause;
use crate::output::{self, Format};

pub(crate) const NAME: &str = "map";

pub(super) const MANUAL: Manual = Manual {
    about: "Show which ranges of a disk are data, and where in which file they lie",
    description: "Prints one line for each extent. --output=json also prints holes, zeroes and the depth in the \
        backing chain.",
    statuses: DONE_OR_FAILED,
    examples: &[
        (
            "List where data lies",
            "image-tool map -f qcow2 overlay.qcow2",
        ),
        (
            "List all extents of the first megabyte for a script",
            "image-tool map -f qcow2 -l 1M --output=json overlay.qcow2",
        ),
    ],
};

pub(crate) fn command() -> Command {
    options::command(NAME, &MANUAL)
        .arg(options::format())
        .arg(options::image_opts())
        .arg(value(
            "start-offset",
            's',
            "OFFSET",
            "offset in the disk at which the list begins",
        ))
        .arg(value(
            "max-length",
            'l',
            "LENGTH",
            "length of the range that is listed",
        ))
        .arg(options::force_share())
        .arg(options::output())
        .arg(options::object())
        .arg(options::operand("FILENAME", "the image"))
}

pub(crate) fn run(matches: &Matches) -> Result<ExitCode> {
    let form = options::output_of(NAME, matches)?;
    let size = |option: &str, what: &str| {
        matches
            .text(option)
            .map(|text| options::size(what, &text))
            .transpose()
    };
    let start = size("start-offset", "start offset")?.unwrap_or(0);
    let max_length = size("max-length", "max length")?;
    options::secrets(matches)?;
    let name = options::one_image(NAME, matches)?;
    let source = options::source(matches, name)?;
    let opened = open::open(&source, &Opening::shared(matches.flag("force-share")))?;
    confine::enter(&[]);
    let size = opened.disk().size();
    let end = max_length.map_or(size, |length| start.saturating_add(length).min(size));
    let extents = Extents {
        image: &opened.image,
        whole_sectors: source.direct,
        next: start,
        end,
        pending: None,
    };
    let mut out = output::stream();
    let printed = match form {
        Format::Human => human(&mut out, extents, &source),
        Format::Json => json(&mut out, extents),
    };
    // The extents before an error are printed, too.
    let flushed = out.flush().map_err(|error| output::not_written(&error));
    printed.and(flushed).map(|()| ExitCode::SUCCESS)
}

/// The extents of a range; neighbours that differ only in their place are joined.
struct Extents<'a> {
    image: &'a Image,
    /// Data is extended to whole sectors, as with `cache.direct=on`.
    whole_sectors: bool,
    next: u64,
    end: u64,
    pending: Option<Extent>,
}

impl Extents<'_> {
    fn map_next(&mut self) -> Result<Option<Extent>> {
        if self.next >= self.end {
            return Ok(None);
        }
        let extent = Disk(self.image)
            .map(self.next, self.end - self.next)
            .map_err(|error| unreadable(self.image, &error))?;
        let mut extent = as_listed(self.image, extent)?;
        let end = extent.start + extent.length;
        if self.whole_sectors && extent.data && end == self.image.virtual_size() {
            extent.length += whole_sectors(end) - end;
        }
        self.next += extent.length;
        Ok(Some(extent))
    }

    /// The next extent, joined with those after it that do not differ.
    fn next(&mut self) -> Result<Option<Extent>> {
        let Some(mut current) = (match self.pending.take() {
            Some(pending) => Some(pending),
            None => self.map_next()?,
        }) else {
            return Ok(None);
        };
        while let Some(next) = self.map_next()? {
            if !joinable(&current, &next) {
                self.pending = Some(next);
                break;
            }
            current.length += next.length;
        }
        Ok(Some(current))
    }
}

/// Zeroes past the end of a short backing file are listed as not present, although they hide deeper images.
fn as_listed(top: &Image, mut extent: Extent) -> Result<Extent> {
    if !(extent.present && extent.zero) {
        return Ok(extent);
    }
    let mut layer = top;
    for _ in 0..extent.depth {
        match layer.backing() {
            Some(backing) => layer = backing,
            None => return Ok(extent),
        }
    }
    let own = Disk(layer)
        .map_layer(extent.start, extent.length)
        .map_err(|error| unreadable(layer, &error))?;
    if !own.present {
        extent.present = false;
        extent.length = extent.length.min(own.length);
    }
    Ok(extent)
}

fn unreadable(image: &Image, error: &qcow::Error) -> anyhow::Error {
    anyhow!(
        "Could not read file metadata: {}",
        cause(error, image.path())
    )
}

fn joinable(one: &Extent, next: &Extent) -> bool {
    one.zero == next.zero
        && one.data == next.data
        && one.compressed == next.compressed
        && one.depth == next.depth
        && one.present == next.present
        && one.file == next.file
        && one.offset.map(|offset| offset + one.length) == next.offset
}

fn human(out: &mut impl std::io::Write, mut extents: Extents<'_>, source: &Source) -> Result<()> {
    let image = extents.image;
    writeln!(
        out,
        "{:<16}{:<16}{:<16}File",
        "Offset", "Length", "Mapped to"
    )
    .map_err(|error| output::not_written(&error))?;
    while let Some(extent) = extents.next()? {
        if !extent.data {
            continue;
        }
        let Some(offset) = extent.offset else {
            bail!("File contains external, encrypted or compressed clusters.");
        };
        if extent.zero {
            continue;
        }
        let file = match (&extent.file, source.windows.last()) {
            // Offsets of a qcow2 image are relative to its window of the file.
            (Some(file), Some(window)) if *file == source.path && image.format().has_metadata() => {
                format!("json:{}", window.shown.compact())
            }
            (Some(file), _) => file.to_string_lossy().into_owned(),
            (None, _) => String::new(),
        };
        writeln!(
            out,
            "{:<16}{:<16}{:<16}{file}",
            hex(extent.start),
            hex(extent.length),
            hex(offset)
        )
        .map_err(|error| output::not_written(&error))?;
    }
    Ok(())
}

/// C's `%#x`: zero has no prefix.
fn hex(value: u64) -> String {
    if value == 0 {
        "0".to_owned()
    } else {
        format!("{value:#x}")
    }
}

fn json(out: &mut impl std::io::Write, mut extents: Extents<'_>) -> Result<()> {
    let start = extents.next;
    let mut line = String::from("[");
    let mut any = false;
    while let Some(extent) = extents.next()? {
        if any {
            line.push_str(",\n");
        }
        any = true;
        entry(&mut line, &extent);
        out.write_all(line.as_bytes())
            .map_err(|error| output::not_written(&error))?;
        line.clear();
    }
    if !any {
        // As in qemu-img, an empty range has one empty entry.
        let empty = Extent {
            start,
            length: 0,
            depth: 0,
            present: false,
            zero: false,
            data: false,
            compressed: false,
            missing: false,
            offset: None,
            file: None,
        };
        entry(&mut line, &empty);
    }
    writeln!(out, "{line}]").map_err(|error| output::not_written(&error))?;
    Ok(())
}

fn entry(line: &mut String, extent: &Extent) {
    let _ = write!(
        line,
        "{{ \"start\": {}, \"length\": {}, \"depth\": {}, \"present\": {}, \"zero\": {}, \"data\": {}, \"compressed\": {}",
        extent.start,
        extent.length,
        extent.depth,
        extent.present,
        extent.zero,
        extent.data,
        extent.compressed
    );
    if let Some(offset) = extent.offset {
        let _ = write!(line, ", \"offset\": {offset}");
    }
    line.push('}');
}
