//! Feature bits of the header and their names.

use crate::error::{Error, Result};
use crate::formats::qcow2::layout::extension::{Extension, kind};

/// Incompatible: refcounts may be wrong and must be rebuilt before the image is written.
pub(crate) const DIRTY: u64 = 1 << 0;
/// Incompatible: metadata is damaged; the image must not be written.
pub(crate) const CORRUPT: u64 = 1 << 1;
/// Incompatible: guest data is in another file.
pub(crate) const EXTERNAL_DATA: u64 = 1 << 2;
/// Incompatible: the header's compression type field is not 0.
pub(crate) const COMPRESSION: u64 = 1 << 3;
/// Incompatible: L2 entries have subclusters.
pub(crate) const EXTENDED_L2: u64 = 1 << 4;
const INCOMPATIBLE_KNOWN: u64 = DIRTY | CORRUPT | EXTERNAL_DATA | COMPRESSION | EXTENDED_L2;

/// Compatible: refcount updates may be postponed while the dirty bit is set.
pub(crate) const LAZY_REFCOUNTS: u64 = 1 << 0;

/// Autoclear: the bitmaps extension is consistent.
pub(crate) const BITMAPS: u64 = 1 << 0;
/// Autoclear: the external data file is a raw image of the disk.
pub(crate) const RAW_EXTERNAL: u64 = 1 << 1;
/// Autoclear: which session's journal counts; see [`crate::formats::qcow2::journal::file`].
pub(crate) const JOURNAL: u64 = 0xffff << 48;
/// Autoclear bits this library knows, and that stay when an image is closed.
pub(crate) const AUTOCLEAR_KNOWN: u64 = BITMAPS | RAW_EXTERNAL;

/// (type, bit, name), as QEMU writes them; type 0 incompatible, 1 compatible, 2 autoclear.
pub(crate) const NAMES: [(u8, u8, &str); 8] = [
    (0, 0, "dirty bit"),
    (0, 1, "corrupt bit"),
    (0, 2, "external data file"),
    (0, 3, "compression type"),
    (0, 4, "extended L2 entries"),
    (1, 0, "lazy refcounts"),
    (2, 0, "bitmaps"),
    (2, 1, "raw external data"),
];

/// Refuses incompatible bits this library does not know, by the name the image itself gives them.
pub(crate) fn check_incompatible(bits: u64, extensions: &[Extension]) -> Result<()> {
    let unknown = bits & !INCOMPATIBLE_KNOWN;
    if unknown == 0 {
        return Ok(());
    }
    let table = extensions
        .iter()
        .find(|extension| extension.kind == kind::FEATURE_NAMES);
    let name = |bit: u8| {
        let mut entries = table?.data.chunks(48);
        let entry = entries.find(|entry| entry.starts_with(&[0, bit]))?;
        let name = entry.get(2..)?.split(|byte| *byte == 0).next()?;
        Some(String::from_utf8_lossy(name).into_owned())
    };
    let mut names = Vec::new();
    let mut unnamed = 0u64;
    for bit in (0u8..64).filter(|bit| unknown >> bit & 1 == 1) {
        match name(bit) {
            Some(name) => names.push(name),
            None => unnamed |= 1 << bit,
        }
    }
    if unnamed != 0 {
        names.push(format!("Unknown incompatible feature: {unnamed:x}"));
    }
    Err(Error::unsupported(format!(
        "Unsupported qcow2 feature(s): {}",
        names.join(", ")
    )))
}

/// The feature name table, of at most `room` bytes.
pub(crate) fn name_table(room: usize) -> Vec<u8> {
    let mut table = Vec::new();
    for (kind, bit, name) in NAMES.iter().take(room / 48) {
        table.extend_from_slice(&[*kind, *bit]);
        table.extend_from_slice(name.as_bytes());
        table.resize(table.len().next_multiple_of(48), 0);
    }
    table
}
