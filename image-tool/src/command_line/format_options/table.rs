//! The options of each format, in the order in which `create` prints them.

use qcow::Format;

/// The type of an option's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Text,
    Bool,
    Number,
    Size,
}

impl Kind {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Text => "str",
            Self::Bool => "bool (on/off)",
            Self::Number => "num",
            Self::Size => "size",
        }
    }
}

/// One option.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spec {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) default: Option<&'static str>,
    pub(crate) help: &'static str,
}

const fn spec(
    name: &'static str,
    kind: Kind,
    default: Option<&'static str>,
    help: &'static str,
) -> Spec {
    Spec {
        name,
        kind,
        default,
        help,
    }
}

/// Options that are known so that they can be refused by name.
const ENCRYPTION: [Spec; 9] = [
    spec(
        "encryption",
        Kind::Bool,
        None,
        "Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)",
    ),
    spec(
        "encrypt.format",
        Kind::Text,
        None,
        "Encrypt the image, format choices: 'aes', 'luks'",
    ),
    spec(
        "encrypt.key-secret",
        Kind::Text,
        None,
        "ID of secret providing qcow AES key or LUKS passphrase",
    ),
    spec(
        "encrypt.cipher-alg",
        Kind::Text,
        None,
        "Name of encryption cipher algorithm",
    ),
    spec(
        "encrypt.cipher-mode",
        Kind::Text,
        None,
        "Name of encryption cipher mode",
    ),
    spec(
        "encrypt.ivgen-alg",
        Kind::Text,
        None,
        "Name of IV generator algorithm",
    ),
    spec(
        "encrypt.ivgen-hash-alg",
        Kind::Text,
        None,
        "Name of IV generator hash algorithm",
    ),
    spec(
        "encrypt.hash-alg",
        Kind::Text,
        None,
        "Name of encryption hash algorithm",
    ),
    spec(
        "encrypt.iter-time",
        Kind::Number,
        None,
        "Time to spend in PBKDF in milliseconds",
    ),
];

const QCOW2_LAYOUT: [Spec; 4] = [
    spec(
        "cluster_size",
        Kind::Size,
        Some("65536"),
        "qcow2 cluster size",
    ),
    spec("extended_l2", Kind::Bool, Some("off"), "Extended L2 tables"),
    spec(
        "preallocation",
        Kind::Text,
        None,
        "Preallocation mode (allowed values: off, metadata, falloc, full)",
    ),
    spec(
        "compression_type",
        Kind::Text,
        Some("zlib"),
        "Compression method used for image cluster compression",
    ),
];

const QCOW2_HEADER: [Spec; 8] = [
    SIZE,
    spec(
        "compat",
        Kind::Text,
        None,
        "Compatibility level (v2 [0.10] or v3 [1.1])",
    ),
    spec(
        "backing_file",
        Kind::Text,
        None,
        "File name of a base image",
    ),
    spec(
        "backing_fmt",
        Kind::Text,
        None,
        "Image format of the base image",
    ),
    spec(
        "data_file",
        Kind::Text,
        None,
        "File name of an external data file",
    ),
    spec(
        "data_file_raw",
        Kind::Bool,
        None,
        "The external data file must stay valid as a raw image",
    ),
    spec(
        "lazy_refcounts",
        Kind::Bool,
        Some("off"),
        "Postpone refcount updates",
    ),
    spec(
        "refcount_bits",
        Kind::Number,
        Some("16"),
        "Width of a reference count entry in bits",
    ),
];

const SIZE: Spec = spec("size", Kind::Size, None, "Virtual disk size");

/// Options of the file that holds the image.
const FILE: [Spec; 3] = [
    spec(
        "nocow",
        Kind::Bool,
        None,
        "Turn off copy-on-write (valid only on btrfs)",
    ),
    spec(
        "preallocation",
        Kind::Text,
        None,
        "Preallocation mode (allowed values: off, falloc, full)",
    ),
    spec(
        "extent_size_hint",
        Kind::Size,
        None,
        "Extent size hint for the image file, 0 to disable",
    ),
];

/// Options of the keys of an encrypted image.
const KEYSLOTS: [Spec; 5] = [
    spec(
        "encrypt.state",
        Kind::Text,
        None,
        "Select new state of affected keyslots (active/inactive)",
    ),
    spec(
        "encrypt.keyslot",
        Kind::Number,
        None,
        "Select a single keyslot to modify explicitly",
    ),
    spec(
        "encrypt.old-secret",
        Kind::Text,
        None,
        "Select all keyslots that match this password",
    ),
    spec(
        "encrypt.new-secret",
        Kind::Text,
        None,
        "New secret to set in the matching keyslots. Empty string to erase",
    ),
    spec(
        "encrypt.iter-time",
        Kind::Number,
        None,
        "Time to spend in PBKDF in milliseconds",
    ),
];

/// The options of `amend` for qcow2.
pub(crate) fn amendable() -> Vec<Spec> {
    KEYSLOTS.into_iter().chain(QCOW2_HEADER).collect()
}

/// The options of a format.
pub(crate) fn own(format: Format) -> Vec<Spec> {
    match format {
        Format::Raw => vec![SIZE],
        Format::Qcow2 => ENCRYPTION
            .into_iter()
            .chain(QCOW2_LAYOUT)
            .chain(QCOW2_HEADER)
            .collect(),
    }
}

/// The options of a format and of the file that holds the image.
pub(crate) fn creatable(format: Format) -> Vec<Spec> {
    let mut table = own(format);
    for spec in FILE {
        if !table.iter().any(|known| known.name == spec.name) {
            table.push(spec);
        }
    }
    table
}

/// The man page's description of an option; `None` for options that are always refused.
pub(crate) fn description(name: &str) -> Option<&'static str> {
    Some(match name {
        "size" => "Size of the disk in bytes, or with a suffix k, M, G, T, P or E.",
        "compat" => "Version of the format: 0.10 (version 2) or 1.1 (version 3, the default).",
        "cluster_size" => {
            "Unit of allocation, a power of two from 512 to 2M (default: 64k). Large clusters need fewer tables; \
             small ones copy less when an overlay is written for the first time."
        }
        "extended_l2" => {
            "Divide each cluster into 32 subclusters, which an overlay copies one by one (default: off). Needs \
             compat=1.1 and clusters of at least 16k."
        }
        "preallocation" => {
            "off: allocate what is written (the default). metadata: write the tables of the whole disk. falloc: also \
             reserve its space. full: also fill it with zeroes."
        }
        "compression_type" => {
            "How clusters are compressed: zlib (the default), or zstd, which needs compat=1.1."
        }
        "backing_file" => "The backing file, of which the image is an overlay.",
        "backing_fmt" => "The format of the backing file.",
        "data_file" => "Keep the disk in this file, and only the metadata in the image.",
        "data_file_raw" => "Keep the data file readable as a raw image of the disk (default: off).",
        "lazy_refcounts" => {
            "Defer the writing of reference counts (default: off). After a crash they are \
             rebuilt when the image is opened."
        }
        "refcount_bits" => {
            "Width of a reference count, a power of two from 1 to 64 (default: 16). It limits how many \
             snapshots share a cluster."
        }
        "nocow" => "On btrfs, write the file in place instead of copying on write (default: off).",
        "extent_size_hint" => {
            "On XFS, reserve space for the file in units of this size; 0 for none (default: 1M)."
        }
        _ => return None,
    })
}
