//! What the library reports about an image: what `info` shows, and the result of a check.

use std::path::PathBuf;

use qcow_format::Format;

use crate::options::CompressionType;

/// What `qemu-img info` shows of an image. No other file is opened for it.
#[derive(Debug, Clone)]
pub struct Info {
    /// The name it was opened by.
    pub filename: PathBuf,
    /// The format.
    pub format: Format,
    /// Size of the disk in bytes.
    pub virtual_size: u64,
    /// Bytes the host has allocated for the file.
    pub actual_size: u64,
    /// Length of the file in bytes.
    pub file_size: u64,
    /// Cluster size, of formats that have clusters.
    pub cluster_size: Option<u64>,
    /// Backing file name as recorded.
    pub backing_filename: Option<String>,
    /// Where that name leads, relative names being relative to the image.
    pub full_backing_filename: Option<PathBuf>,
    /// Backing format as recorded.
    pub backing_format: Option<String>,
    /// Internal snapshots, in the order of the table.
    pub snapshots: Vec<SnapshotInfo>,
    /// What only qcow2 has.
    pub qcow2: Option<Qcow2Info>,
}

/// What a qcow2 header says.
#[derive(Debug, Clone)]
pub struct Qcow2Info {
    /// 2 (compat 0.10) or 3 (compat 1.1).
    pub version: u32,
    /// Compression of compressed clusters.
    pub compression_type: CompressionType,
    /// The lazy refcounts bit.
    pub lazy_refcounts: bool,
    /// Width of a refcount.
    pub refcount_bits: u32,
    /// The dirty bit.
    pub dirty: bool,
    /// The corrupt bit.
    pub corrupt: bool,
    /// L2 entries with subclusters.
    pub extended_l2: bool,
    /// Name of the external data file as recorded, if the image uses one.
    pub data_file: Option<String>,
    /// The external data file is a raw image, too.
    pub data_file_raw: bool,
    /// Persistent dirty bitmaps.
    pub bitmaps: Vec<BitmapInfo>,
    /// How its data is encrypted, if it is.
    pub encryption: Option<Encryption>,
}

/// How the data of an image is encrypted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Encryption {
    /// By the format itself, which nobody should use any more.
    Aes,
    /// As its LUKS header says.
    Luks(LuksInfo),
}

/// A LUKS header, version 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LuksInfo {
    /// Cipher and length of the key in bits.
    pub cipher: String,
    /// How blocks are chained.
    pub cipher_mode: String,
    /// Where initial vectors come from.
    pub generator: String,
    /// The hash that takes part in that.
    pub generator_hash: Option<String>,
    /// The hash of the keys.
    pub hash: String,
    /// Its UUID.
    pub uuid: String,
    /// Where the data begins, in bytes behind the header's first.
    pub payload_offset: u64,
    /// Iterations for the master key.
    pub master_key_iterations: u32,
    /// The key slots.
    pub slots: Vec<LuksSlot>,
}

/// A place for a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LuksSlot {
    /// Where its key material is, in bytes behind the header's first.
    pub key_offset: u64,
    /// Iterations and stripes, if it is in use.
    pub active: Option<(u32, u32)>,
}

/// One internal snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Its id, unique, usually a number.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Size of the saved machine state in bytes.
    pub vm_state_size: u64,
    /// Time of creation, seconds since 1970.
    pub date_sec: u32,
    /// Nanoseconds of the time of creation.
    pub date_nsec: u32,
    /// How long the guest had run, in nanoseconds.
    pub vm_clock_nsec: u64,
    /// Instructions executed, if recorded (`-1` in the file means not).
    pub icount: Option<u64>,
    /// Size of the disk then, if recorded.
    pub disk_size: Option<u64>,
}

/// One persistent dirty bitmap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BitmapInfo {
    /// Its name.
    pub name: String,
    /// Bytes of disk per bit.
    pub granularity: u64,
    /// It was not saved properly and must not be trusted.
    pub in_use: bool,
    /// It is enabled: writers must keep it up to date.
    pub auto: bool,
}

/// What [`crate::Image::check`] may change.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Repair {
    /// Nothing.
    #[default]
    None,
    /// Lower refcounts that are too high.
    Leaks,
    /// Everything that can be.
    All,
}

/// What a check found, with qemu-img check's fields.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckResult {
    /// Errors that stopped (part of) the check.
    pub check_errors: u64,
    /// Corruptions that remain.
    pub corruptions: u64,
    /// Leaked clusters that remain.
    pub leaks: u64,
    /// Corruptions repaired.
    pub corruptions_fixed: u64,
    /// Leaked clusters freed.
    pub leaks_fixed: u64,
    /// End of the last cluster in use.
    pub image_end_offset: u64,
    /// Clusters of the disk.
    pub total_clusters: u64,
    /// Clusters allocated, compressed ones included.
    pub allocated_clusters: u64,
    /// Clusters that do not follow their predecessor.
    pub fragmented_clusters: u64,
    /// Compressed clusters.
    pub compressed_clusters: u64,
    /// Why the check could not come to its end, if it could not: the counts are those of what it had seen.
    pub unfinished: Option<String>,
    /// One line per finding, worded as QEMU does.
    pub messages: Vec<String>,
}

/// The counts of a check at some point of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tallies {
    pub(crate) corruptions: u64,
    pub(crate) leaks: u64,
    check_errors: u64,
    corruptions_fixed: u64,
    leaks_fixed: u64,
}

impl CheckResult {
    pub(crate) fn tallies(&self) -> Tallies {
        Tallies {
            corruptions: self.corruptions,
            leaks: self.leaks,
            check_errors: self.check_errors,
            corruptions_fixed: self.corruptions_fixed,
            leaks_fixed: self.leaks_fixed,
        }
    }

    /// Forgets what was counted since.
    pub(crate) fn restore(&mut self, tallies: Tallies) {
        self.corruptions = tallies.corruptions;
        self.leaks = tallies.leaks;
        self.check_errors = tallies.check_errors;
        self.corruptions_fixed = tallies.corruptions_fixed;
        self.leaks_fixed = tallies.leaks_fixed;
    }

    /// Whether nothing wrong remains that could do harm.
    pub fn is_sound(&self) -> bool {
        self.corruptions == 0 && self.check_errors == 0 && self.unfinished.is_none()
    }
}
