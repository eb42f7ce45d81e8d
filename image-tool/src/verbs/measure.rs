//! `measure`: computes the size of the file of a new image.

use std::process::ExitCode;

use anyhow::{Result, anyhow, bail};
use clap::Command;
use qcow::{CreateOptions, Format, Preallocation};

use crate::command_line::format_options::{self, FormatOptions};
use crate::command_line::getopt::Matches;
use crate::command_line::manual::{DONE_OR_FAILED, Manual};
use crate::command_line::options::{self, value};
use crate::confine;
use crate::open::snapshot_param::SnapshotParam;
use crate::open::{self, Opened, Opening};
use crate::output;
use crate::output::errors::cause;
use crate::output::json::{Object, Value};
use crate::output::report;

pub(crate) const NAME: &str = "measure";

pub(super) const MANUAL: Manual = Manual {
    about: "Show how large the file of a new image would be",
    description: "Prints the size that the file of a target image needs, and the most it can need when its whole \
        disk is written.",
    statuses: DONE_OR_FAILED,
    examples: &[
        (
            "The size of a qcow2 image of this disk",
            "image-tool measure -f raw -O qcow2 disk.raw",
        ),
        (
            "The size of an empty qcow2 image for 20 GiB",
            "image-tool measure -O qcow2 --size 20G",
        ),
    ],
};

pub(crate) fn command() -> Command {
    options::command(NAME, &MANUAL)
        .arg(options::format())
        .arg(options::image_opts())
        .arg(value(
            "options",
            'o',
            "OPTIONS",
            "options of the target's format",
        ))
        .arg(options::object())
        .arg(options::output())
        .arg(value(
            "snapshot",
            'l',
            "SNAPSHOT",
            "measure the disk as it was in this internal snapshot",
        ))
        .arg(value(
            "target-format",
            'O',
            "FMT",
            "format of the target (default: raw)",
        ))
        .arg(value(
            "size",
            None,
            "SIZE",
            "measure an empty disk of this size",
        ))
        .arg(options::force_share())
        .arg(options::operand(
            "FILENAME",
            "the image that would be converted",
        ))
}

pub(crate) fn run(matches: &Matches) -> Result<ExitCode> {
    let form = options::output_of(NAME, matches)?;
    let list = format_options::joined(&matches.texts("options"))?;
    let snapshot = matches
        .text("snapshot")
        .map(|text| SnapshotParam::parse(&text))
        .transpose()?;
    let size = matches
        .text("size")
        .map(|size| options::size("image size", &size))
        .transpose()?;
    let secrets = options::secrets(matches)?;
    let name = match matches.operands() {
        [] => None,
        [name] => Some(name),
        _ => bail!("At most one filename argument is allowed."),
    };
    let about_file = ["image-opts", "format", "snapshot"]
        .iter()
        .any(|option| matches.flag(option));
    match (name, size) {
        (None, _) if about_file => bail!("--image-opts, -f, and -l require a filename argument."),
        (Some(_), Some(_)) => bail!("--size N cannot be used together with a filename."),
        (None, None) => bail!("Either --size N or one filename must be specified."),
        _ => {}
    }
    let opened = name
        .map(|name| open_input(matches, name, snapshot.as_ref()))
        .transpose()?;
    let target = matches
        .text("target-format")
        .unwrap_or_else(|| "raw".to_owned());
    let format = format_options::known_format(&target)
        .ok_or_else(|| format_options::not_creatable(&target))?;
    confine::enter(&[]);
    let mut options = FormatOptions::new(format_options::creatable(format));
    if let Some(list) = &list
        && let Err(error) = options.parse(list)
    {
        report::error(error);
        bail!("Invalid options for file format '{format}'");
    }
    let size = size.or_else(|| options.number("size")).unwrap_or(0);
    let measured = match format {
        Format::Raw => raw(opened.as_ref(), size)?,
        Format::Qcow2 => qcow2(opened.as_ref(), &options, &secrets, size)?,
    };
    match form {
        output::Format::Human => output::line(&measured.human()),
        output::Format::Json => output::line(&measured.json().pretty()),
    }
    Ok(ExitCode::SUCCESS)
}

fn open_input(
    matches: &Matches,
    name: &std::ffi::OsStr,
    snapshot: Option<&SnapshotParam>,
) -> Result<Opened> {
    let source = options::source(matches, name)?;
    let mut opening = Opening::shared(matches.flag("force-share"));
    if let Some(param) = snapshot {
        opening.snapshot = Some(param.resolve(&source, &opening)?);
    }
    open::open(&source, &opening)
}

/// The sizes, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Measured {
    required: u64,
    fully_allocated: u64,
    bitmaps: Option<u64>,
}

impl Measured {
    fn human(&self) -> String {
        let bitmaps = self
            .bitmaps
            .map(|bytes| format!("\nbitmaps size: {bytes}"))
            .unwrap_or_default();
        format!(
            "required size: {}\nfully allocated size: {}{bitmaps}",
            self.required, self.fully_allocated
        )
    }

    fn json(&self) -> Value {
        Object::new()
            .with("required", self.required)
            .with("fully-allocated", self.fully_allocated)
            .with_some("bitmaps", self.bitmaps)
            .into()
    }
}

fn raw(input: Option<&Opened>, size: u64) -> Result<Measured> {
    let size = input.map_or(size, |input| input.disk().size());
    let size = size.checked_next_multiple_of(512).ok_or_else(too_large)?;
    Ok(Measured {
        required: size,
        fully_allocated: size,
        bitmaps: None,
    })
}

fn too_large() -> anyhow::Error {
    anyhow!("The image size is too large (try using a larger cluster size)")
}

/// The largest L1 table.
const MAX_L1: u64 = 32 << 20;

fn qcow2(
    input: Option<&Opened>,
    options: &FormatOptions,
    secrets: &[String],
    size: u64,
) -> Result<Measured> {
    let create = format_options::measured(options)?;
    let cluster = create.cluster_size;
    let round = |size: u64| size.checked_next_multiple_of(cluster).ok_or_else(too_large);
    // Of the encryptions, only LUKS needs a header.
    let keys = match options.text("encrypt.format") {
        Some("luks") => {
            let len = format_options::luks_header_len(options)?;
            format_options::check_secret(options, secrets)?;
            len.next_multiple_of(cluster)
        }
        _ => 0,
    };
    let asked = round(size)?;
    let l2_entry = if create.extended_l2 { 16 } else { 8 };
    if (asked / cluster).div_ceil(cluster / l2_entry) * 8 > MAX_L1 {
        return Err(too_large());
    }
    let virtual_size = round(input.map_or(size, |input| input.disk().size()))?;
    let allocated = matches!(
        create.preallocation,
        Preallocation::Full | Preallocation::Falloc
    );
    let data = match input {
        _ if allocated => virtual_size,
        Some(_) if create.backing_file.is_some() => virtual_size,
        Some(input) => data_clusters(input, cluster)?,
        None => 0,
    };
    let fully_allocated = virtual_size
        .checked_add(metadata(&create, virtual_size))
        .ok_or_else(too_large)?;
    let bitmaps = match input {
        Some(input) if create.version >= 3 => bitmaps(input, cluster)?,
        _ => None,
    };
    Ok(Measured {
        required: fully_allocated - virtual_size + data + keys,
        fully_allocated: fully_allocated.checked_add(keys).ok_or_else(too_large)?,
        bitmaps,
    })
}

/// Bytes of the clusters that hold data.
fn data_clusters(input: &Opened, cluster: u64) -> Result<u64> {
    let size = input.disk().size();
    let (mut offset, mut data) = (0, 0);
    while offset < size {
        let extent = input.disk().map(offset, size - offset).map_err(|error| {
            anyhow!(
                "Unable to get block status: {}",
                cause(&error, input.image.path())
            )
        })?;
        let mut end = offset + extent.length;
        if extent.data && extent.present && !extent.zero {
            end = end.next_multiple_of(cluster);
            data += end - (offset - offset % cluster);
        }
        offset = end;
    }
    Ok(data)
}

/// Bytes of metadata when every cluster is allocated: header, L2, L1, refcounts.
fn metadata(create: &CreateOptions, virtual_size: u64) -> u64 {
    let cluster = create.cluster_size;
    let l2_entry = if create.extended_l2 { 16 } else { 8 };
    let l2 = (virtual_size / cluster).next_multiple_of(cluster / l2_entry) * l2_entry;
    let l1 = (l2 / cluster).next_multiple_of(cluster / 8) * 8;
    let before = cluster + l2 + l1;
    let clusters = (before + virtual_size) / cluster;
    let per_block = cluster * 8 / u64::from(create.refcount_bits);
    // Refcount blocks and the table are counted, too: repeat until their number stays the same.
    let (mut blocks, mut table) = (0, 0);
    loop {
        let total = clusters + table + blocks;
        blocks = total.div_ceil(per_block);
        table = blocks.div_ceil(cluster / 8);
        if clusters + table + blocks == total {
            return before + (blocks + table) * cluster;
        }
    }
}

/// Bytes that the bitmaps of the input need; `None` if its format has none.
fn bitmaps(input: &Opened, cluster: u64) -> Result<Option<u64>> {
    let Some(qcow2) = input.info()?.qcow2.filter(|qcow2| qcow2.version >= 3) else {
        return Ok(None);
    };
    let size = input.disk().size();
    let (mut bytes, mut directory) = (0, 0);
    for bitmap in qcow2.bitmaps.iter().filter(|bitmap| !bitmap.in_use) {
        let clusters = size
            .div_ceil(bitmap.granularity)
            .div_ceil(8)
            .div_ceil(cluster);
        bytes += clusters * cluster + (clusters * 8).next_multiple_of(cluster);
        directory += (24 + bitmap.name.len() as u64).next_multiple_of(8);
    }
    Ok(Some(bytes + directory.next_multiple_of(cluster)))
}
