//! Where, and how, a range of a disk is stored.

use std::path::PathBuf;

/// A range of the disk that is stored in one way, with qemu-img map's fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extent {
    /// Guest offset of the first byte.
    pub start: u64,
    /// Length in bytes; never 0.
    pub length: u64,
    /// How many images below the top one it is found (0 = the image asked). Of the last image asked if it is nowhere.
    pub depth: u32,
    /// Some image of the chain decides the content; if not, it reads as zeroes because nothing holds it.
    pub present: bool,
    /// It reads as zeroes.
    pub zero: bool,
    /// It is stored as data.
    pub data: bool,
    /// It is stored compressed.
    pub compressed: bool,
    /// Its data lies past the end of the file, in whole clusters: see [`crate::OpenOptions::refuse_missing`].
    pub missing: bool,
    /// Where the data lies in the file, if it lies there as it is.
    pub offset: Option<u64>,
    /// The file `offset` refers to: the image's own, or its external data file.
    pub file: Option<PathBuf>,
}
