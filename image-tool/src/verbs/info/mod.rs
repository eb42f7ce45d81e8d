//! `info`: describes an image. Only the named file is opened; with `--backing-chain` also those of its backing chain.

mod describe;

use std::fmt::Write as _;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use clap::Command;
use qcow::{Encryption, Info, LuksSlot, Qcow2Info};

use crate::command_line::getopt::Matches;
use crate::command_line::manual::{DONE_OR_FAILED, Manual};
use crate::command_line::options;
use crate::confine;
use crate::open::disk::whole_sectors;
use crate::output::json::{Object, Value};
use crate::output::size;
use crate::output::snapshot_list::{self, LocalTime};
use crate::output::{self, Format};

use describe::{ImageInfo, collect};

pub(crate) const NAME: &str = "info";

pub(super) const MANUAL: Manual = Manual {
    about: "Show format, sizes, backing file, snapshots and bitmaps of an image",
    description: "Opens the named file and nothing else; with --backing-chain also the images it stands on.",
    statuses: DONE_OR_FAILED,
    examples: &[
        ("Describe an image", "image-tool info disk.qcow2"),
        (
            "Describe a chain for a script",
            "image-tool info --backing-chain --output=json overlay.qcow2",
        ),
    ],
};

pub(crate) fn command() -> Command {
    options::command(NAME, &MANUAL)
        .arg(options::format())
        .arg(options::image_opts())
        .arg(options::flag(
            "backing-chain",
            'b',
            "describe the images of the backing chain, too",
        ))
        .arg(options::force_share())
        .arg(options::output())
        .arg(options::object())
        .arg(options::operand("FILENAME", "the image"))
}

pub(crate) fn run(matches: &Matches) -> Result<ExitCode> {
    let form = options::output_of(NAME, matches)?;
    options::secrets(matches)?;
    let name = options::one_image(NAME, matches)?;
    let source = options::source(matches, name)?;
    let chain = matches.flag("backing-chain");
    let local = LocalTime::new();
    let infos = collect(source, chain, matches.flag("force-share"))?;
    confine::enter(&[]);
    let text = match form {
        Format::Human => infos
            .iter()
            .map(|info| human(info, &local, ""))
            .collect::<Vec<_>>()
            .join("\n"),
        Format::Json => {
            let mut nodes: Vec<Value> = infos.iter().map(json).collect();
            if chain {
                Value::List(nodes)
            } else {
                nodes.swap_remove(0)
            }
            .pretty()
        }
    };
    output::line(text.trim_end_matches('\n'));
    Ok(ExitCode::SUCCESS)
}

impl ImageInfo {
    /// The name of the format, or of the protocol if there is no format node.
    fn format(&self) -> &'static str {
        match self.source.is_protocol {
            true => protocol(&self.source.path),
            false => self.info.format.name(),
        }
    }

    fn shown(&self) -> String {
        self.source.shown(self.format())
    }
}

const FILE: &str = "file";
const HOST_DEVICE: &str = "host_device";

/// The protocol driver of a path.
fn protocol(path: &Path) -> &'static str {
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.file_type().is_block_device() => HOST_DEVICE,
        _ => FILE,
    }
}

/// A child node between an image and its file, or the file.
struct ChildNode {
    name: String,
    /// `file` or `host_device` for the file itself.
    format: &'static str,
    size: u64,
}

/// The child nodes of an image, the nearest first; the last is the file.
fn child_nodes(image: &ImageInfo) -> Vec<ChildNode> {
    if image.source.is_protocol {
        return Vec::new();
    }
    let mut nodes = vec![ChildNode {
        name: image.source.path.to_string_lossy().into_owned(),
        format: protocol(&image.source.path),
        size: image.file_size,
    }];
    let mut size = image.file_size;
    for window in &image.source.windows {
        size = window.size.unwrap_or(size.saturating_sub(window.offset));
        nodes.push(ChildNode {
            name: format!("json:{}", window.shown.compact()),
            format: "raw",
            size,
        });
    }
    if !image.info.format.has_metadata() && nodes.len() > 1 {
        // The last one is the image.
        nodes.pop();
    }
    if image.file_node.is_some() {
        // It is printed as an image.
        nodes.remove(0);
    }
    nodes.reverse();
    nodes
}

fn human(image: &ImageInfo, local: &LocalTime, path: &str) -> String {
    let mut text = String::new();
    let (info, name) = (&image.info, image.shown());
    let _ = write!(
        text,
        "image: {name}\nfile format: {}\nvirtual size: {} ({} bytes)\ndisk size: {}\n",
        image.format(),
        size::human(whole_sectors(info.virtual_size)),
        whole_sectors(info.virtual_size),
        size::human(info.actual_size),
    );
    if is_encrypted(info) {
        text.push_str("encrypted: yes\n");
    }
    if let Some(cluster_size) = info.cluster_size {
        let _ = writeln!(text, "cluster_size: {cluster_size}");
    }
    if info.qcow2.as_ref().is_some_and(|qcow2| qcow2.dirty) {
        text.push_str("cleanly shut down: no\n");
    }
    if let Some(backing) = &info.backing_filename {
        text.push_str(&human_backing(info, backing));
    }
    if !info.snapshots.is_empty() {
        text.push_str("Snapshot list:\n");
        text.push_str(&snapshot_list::table(&info.snapshots, local));
    }
    if let Some(qcow2) = &info.qcow2 {
        text.push_str("Format specific information:\n");
        human_object(&mut text, &specific(qcow2), 1);
    }
    if let (true, Some(hint)) = (image.source.is_protocol, image.extent_size_hint) {
        let _ = write!(
            text,
            "Format specific information:\n    extent size hint: {hint}\n"
        );
    }
    let (mut path, mut indent) = (path.to_owned(), String::new());
    for node in child_nodes(image) {
        path.push_str("/file");
        let _ = writeln!(text, "{indent}Child node '{path}':");
        indent.push_str("    ");
        let size = whole_sectors(node.size);
        let (kind, what, length) = match node.format {
            FILE | HOST_DEVICE => ("filename", "protocol type", "file length"),
            _ => ("image", "file format", "virtual size"),
        };
        let _ = write!(
            text,
            "{indent}{kind}: {}\n{indent}{what}: {}\n{indent}{length}: {} ({size} bytes)\n{indent}disk size: {}\n",
            node.name,
            node.format,
            size::human(size),
            size::human(info.actual_size),
        );
        if let (FILE | HOST_DEVICE, Some(hint)) = (node.format, image.extent_size_hint) {
            let _ = write!(
                text,
                "{indent}Format specific information:\n{indent}    extent size hint: {hint}\n"
            );
        }
    }
    if let Some(node) = &image.file_node {
        path.push_str("/file");
        let _ = writeln!(text, "{indent}Child node '{path}':");
        for line in human(node, local, &path).lines() {
            let _ = writeln!(text, "{indent}    {line}");
        }
    }
    text
}

fn human_backing(info: &Info, backing: &str) -> String {
    let mut text = format!("backing file: {backing}");
    match info
        .full_backing_filename
        .as_ref()
        .map(|path| path.to_string_lossy())
    {
        None => text.push_str(" (cannot determine actual path)"),
        Some(full) if full != backing => {
            let _ = write!(text, " (actual path: {full})");
        }
        Some(_) => {}
    }
    text.push('\n');
    if let Some(format) = &info.backing_format {
        let _ = writeln!(text, "backing file format: {format}");
    }
    text
}

/// An object with one member on a line, and spaces for the dashes of names.
fn human_object(text: &mut String, object: &Object, depth: usize) {
    for (name, value) in object.in_order() {
        human_member(text, &name.replace('-', " "), value, depth);
    }
}

fn human_member(text: &mut String, label: &str, value: &Value, depth: usize) {
    let _ = write!(text, "{:width$}{label}:", "", width = depth * 4);
    match value {
        Value::Object(inner) => {
            text.push('\n');
            human_object(text, inner, depth + 1);
        }
        Value::List(items) => {
            text.push('\n');
            for (index, item) in items.iter().enumerate() {
                human_member(text, &format!("[{index}]"), item, depth + 1);
            }
        }
        Value::Text(value) => {
            let _ = writeln!(text, " {value}");
        }
        Value::Bool(value) => {
            let _ = writeln!(text, " {value}");
        }
        Value::Int(value) => {
            let _ = writeln!(text, " {value}");
        }
        Value::Uint(value) => {
            let _ = writeln!(text, " {value}");
        }
    }
}

/// The part that only qcow2 has.
fn specific(info: &Qcow2Info) -> Object {
    let v3 = info.version >= 3;
    let bitmaps: Vec<Value> = info
        .bitmaps
        .iter()
        .map(|bitmap| {
            let flags = [("in-use", bitmap.in_use), ("auto", bitmap.auto)];
            let flags: Vec<Value> = flags
                .iter()
                .filter(|(_, set)| *set)
                .map(|(name, _)| Value::from(*name))
                .collect();
            Object::new()
                .with("name", bitmap.name.as_str())
                .with("granularity", bitmap.granularity)
                .with("flags", flags)
                .into()
        })
        .collect();
    Object::new()
        .with("compat", if v3 { "1.1" } else { "0.10" })
        .with_some(
            "data-file",
            info.data_file.as_deref().filter(|name| !name.is_empty()),
        )
        .with_some(
            "data-file-raw",
            info.data_file.as_ref().map(|_| info.data_file_raw),
        )
        .with_some("extended-l2", v3.then_some(info.extended_l2))
        .with_some("lazy-refcounts", v3.then_some(info.lazy_refcounts))
        .with_some("corrupt", v3.then_some(info.corrupt))
        .with("refcount-bits", info.refcount_bits)
        .with_some("bitmaps", (!bitmaps.is_empty()).then_some(bitmaps))
        .with("compression-type", info.compression_type.name())
        .with_some("encrypt", info.encryption.as_ref().map(encryption))
}

fn is_encrypted(info: &Info) -> bool {
    let qcow2 = info.qcow2.as_ref();
    qcow2.is_some_and(|qcow2| qcow2.encryption.is_some())
}

fn encryption(encryption: &Encryption) -> Object {
    let Encryption::Luks(luks) = encryption else {
        return Object::new().with("format", "aes");
    };
    let slot = |slot: &LuksSlot| {
        Value::from(
            Object::new()
                .with("active", slot.active.is_some())
                .with_some(
                    "iters",
                    slot.active.map(|(iterations, _)| u64::from(iterations)),
                )
                .with_some(
                    "stripes",
                    slot.active.map(|(_, stripes)| u64::from(stripes)),
                )
                .with("key-offset", slot.key_offset),
        )
    };
    Object::new()
        .with("format", "luks")
        .with("cipher-alg", luks.cipher.as_str())
        .with("cipher-mode", luks.cipher_mode.as_str())
        .with("ivgen-alg", luks.generator.as_str())
        .with_some("ivgen-hash-alg", luks.generator_hash.as_deref())
        .with("hash-alg", luks.hash.as_str())
        .with("detached-header", false)
        .with("payload-offset", luks.payload_offset)
        .with("master-key-iters", u64::from(luks.master_key_iterations))
        .with("uuid", luks.uuid.as_str())
        .with("slots", luks.slots.iter().map(slot).collect::<Vec<_>>())
}

/// The `children` member of an image: the first node, which contains the others.
fn json_children(nodes: &[ChildNode], image: &ImageInfo) -> Vec<Value> {
    let Some((node, rest)) = nodes.split_first() else {
        let child = |node: &ImageInfo| Object::new().with("name", "file").with("info", json(node));
        return image
            .file_node
            .iter()
            .map(|node| child(node).into())
            .collect();
    };
    let is_file = matches!(node.format, FILE | HOST_DEVICE);
    let specific = file_specific(image);
    let info = Object::new()
        .with("filename", node.name.as_str())
        .with("format", node.format)
        .with("dirty-flag", false)
        .with("actual-size", image.info.actual_size)
        .with("virtual-size", whole_sectors(node.size))
        .with_some("format-specific", is_file.then_some(specific))
        .with("children", json_children(rest, image));
    vec![Object::new().with("name", "file").with("info", info).into()]
}

/// The part that only a file has.
fn file_specific(image: &ImageInfo) -> Object {
    let hint = image.extent_size_hint.map(u64::from);
    let data = Object::new().with_some("extent-size-hint", hint);
    Object::new().with("type", "file").with("data", data)
}

fn json(image: &ImageInfo) -> Value {
    let (info, filename) = (&image.info, image.shown());
    let full_backing = info
        .full_backing_filename
        .as_ref()
        .map(|path| path.to_string_lossy().into_owned());
    let snapshots = snapshot_list::json(&info.snapshots);
    let format_specific = info.qcow2.as_ref().map(|qcow2| {
        Object::new()
            .with("type", "qcow2")
            .with("data", specific(qcow2))
    });
    let format_specific = match image.source.is_protocol {
        true => Some(file_specific(image)),
        false => format_specific,
    };
    Object::new()
        .with("filename", filename)
        .with("format", image.format())
        .with(
            "dirty-flag",
            info.qcow2.as_ref().is_some_and(|qcow2| qcow2.dirty),
        )
        .with("actual-size", info.actual_size)
        .with("virtual-size", whole_sectors(info.virtual_size))
        .with_some("encrypted", is_encrypted(info).then_some(true))
        .with_some("cluster-size", info.cluster_size)
        .with_some("backing-filename", info.backing_filename.as_deref())
        .with_some("full-backing-filename", full_backing)
        .with_some("backing-filename-format", info.backing_format.as_deref())
        .with_some("snapshots", (!snapshots.is_empty()).then_some(snapshots))
        .with_some("format-specific", format_specific)
        .with("children", json_children(&child_nodes(image), image))
        .into()
}
