//! Entries of L1 and L2 tables.

use crate::error::{Error, Result};
use crate::formats::qcow2::layout::address::{GuestOffset, HostOffset};
use crate::formats::qcow2::layout::geometry::{COPIED, Geometry, HOST_LIMIT, OFFSET_MASK};

/// The cluster is compressed.
pub(crate) const COMPRESSED: u64 = 1 << 62;
/// The cluster reads as zeroes (version 3, without subclusters).
pub(crate) const ZERO: u64 = 1;
/// Reserved bits of an L1 entry.
pub(crate) const L1_RESERVED: u64 = !(COPIED | OFFSET_MASK);

/// An L2 entry: the descriptor and, with extended L2 entries, the subcluster bitmap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct L2Entry {
    pub(crate) word: u64,
    pub(crate) bitmap: u64,
}

/// How a cluster is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cluster {
    /// Not at all. Subclusters may still read as zeroes.
    Unallocated,
    /// At this host offset; some subclusters may read as zeroes or be unallocated all the same.
    Allocated { host: HostOffset, copied: bool },
    /// Compressed: this many bytes (whole sectors, from the first byte) at this offset.
    Compressed { host: HostOffset, len: u64 },
}

/// How one subcluster (or a cluster of an image without subclusters) reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    Unallocated,
    Zero,
    Data,
    Compressed,
}

/// The L2 table an L1 entry points to, if any, and whether it may be changed in place.
pub(crate) fn l1_entry(
    geometry: &Geometry,
    index: u64,
    entry: u64,
) -> Result<Option<(HostOffset, bool)>> {
    let offset = entry & OFFSET_MASK;
    if entry & L1_RESERVED != 0 || !offset.is_multiple_of(geometry.cluster_size()) {
        return Err(Error::corrupt(format!(
            "L1 entry {index} is invalid: {entry:#018x}"
        )));
    }
    if offset == 0 {
        return Ok(None);
    }
    Ok(Some((HostOffset(offset), entry & COPIED != 0)))
}

impl L2Entry {
    /// A cluster of its own at `host`; all subclusters hold data.
    pub(crate) fn data(geometry: &Geometry, host: HostOffset) -> Self {
        Self {
            word: host.0 | COPIED,
            bitmap: if geometry.extended_l2 { 0xffff_ffff } else { 0 },
        }
    }

    /// Reads as zeroes and takes no space.
    pub(crate) fn zero(geometry: &Geometry) -> Self {
        if geometry.extended_l2 {
            Self {
                word: 0,
                bitmap: 0xffff_ffff_0000_0000,
            }
        } else {
            Self {
                word: ZERO,
                bitmap: 0,
            }
        }
    }

    /// The same place, reading as zeroes.
    pub(crate) fn zeroed(self, geometry: &Geometry) -> Self {
        if geometry.extended_l2 {
            Self {
                word: self.word,
                bitmap: 0xffff_ffff_0000_0000,
            }
        } else {
            Self {
                word: self.word | ZERO,
                bitmap: 0,
            }
        }
    }

    /// A compressed cluster of `len` bytes at `host`.
    pub(crate) fn compressed(geometry: &Geometry, host: HostOffset, len: u64) -> Self {
        let sectors = ((host.0 + len - 1) >> 9) - (host.0 >> 9);
        Self {
            word: COMPRESSED | host.0 | sectors << compressed_shift(geometry),
            bitmap: 0,
        }
    }

    /// An entry as it is in the file, of 8 or 16 bytes.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        let word = |at: usize| {
            let bytes = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>());
            bytes.map_or(0, |bytes| u64::from_be_bytes(*bytes))
        };
        Self {
            word: word(0),
            bitmap: word(8),
        }
    }

    /// An entry as it is in the cache, of one word or two.
    pub(crate) fn from_words(words: &[u64]) -> Self {
        let word = |at: usize| words.get(at).copied().unwrap_or(0);
        Self {
            word: word(0),
            bitmap: word(1),
        }
    }

    /// Where a compressed cluster begins, and how many bytes it may have, unchecked.
    pub(crate) fn compressed_place(&self, geometry: &Geometry) -> (HostOffset, u64) {
        let shift = compressed_shift(geometry);
        let host = self.word & ((1 << shift) - 1);
        let sectors = ((self.word & !(COMPRESSED | COPIED)) >> shift) + 1;
        (HostOffset(host), sectors * 512 - (host & 511))
    }

    /// Without the bits that mean nothing: who only reads ignores them, as QEMU does. Who writes takes them for damage.
    pub(crate) fn without_reserved(self) -> Self {
        match self.word & COMPRESSED {
            0 => Self {
                word: self.word & (COPIED | OFFSET_MASK | ZERO),
                ..self
            },
            _ => self,
        }
    }

    /// What the entry says about the cluster, after checking that it may say so.
    ///
    /// `external`: the data is in an external data file, where offset 0 is an offset like any other.
    pub(crate) fn cluster(
        &self,
        geometry: &Geometry,
        external: bool,
        guest: GuestOffset,
    ) -> Result<Cluster> {
        let bad = |why: &str| {
            Error::corrupt(format!(
                "L2 entry for guest offset {guest} {why}: {:#018x}",
                self.word
            ))
        };
        if self.word & COMPRESSED != 0 {
            if external {
                return Err(bad("is compressed in an image with an external data file"));
            }
            let (host, len) = self.compressed_place(geometry);
            if host.0 >= HOST_LIMIT || host.0 == 0 {
                return Err(bad("has an invalid compressed offset"));
            }
            return Ok(Cluster::Compressed { host, len });
        }
        // With subclusters this bit means nothing, and QEMU takes such entries as if it were clear.
        if self.word & ZERO != 0 && !geometry.extended_l2 && geometry.version < 3 {
            return Err(bad("is a zero cluster in a version 2 image"));
        }
        if self.word & !(COPIED | OFFSET_MASK | ZERO) != 0 {
            return Err(bad("has reserved bits set"));
        }
        let host = self.word & OFFSET_MASK;
        if !host.is_multiple_of(geometry.cluster_size()) {
            return Err(bad("is not aligned to a cluster"));
        }
        let copied = self.word & COPIED != 0;
        let allocated = host != 0 || (external && copied);
        if geometry.extended_l2 {
            if self.bitmap & (self.bitmap >> 32) & 0xffff_ffff != 0 {
                return Err(bad("has subclusters that are both allocated and zero"));
            }
            if !allocated && self.bitmap & 0xffff_ffff != 0 {
                return Err(bad("has subclusters allocated nowhere"));
            }
        }
        Ok(if allocated {
            Cluster::Allocated {
                host: HostOffset(host),
                copied,
            }
        } else {
            Cluster::Unallocated
        })
    }

    /// How subcluster `index` reads, given what [`L2Entry::cluster`] said.
    pub(crate) fn content(&self, geometry: &Geometry, cluster: &Cluster, index: u64) -> Content {
        match cluster {
            Cluster::Compressed { .. } => Content::Compressed,
            _ if geometry.extended_l2 => {
                match (self.bitmap >> index & 1, self.bitmap >> (index + 32) & 1) {
                    (_, 1) => Content::Zero,
                    (1, _) => Content::Data,
                    _ => Content::Unallocated,
                }
            }
            _ if self.word & ZERO != 0 => Content::Zero,
            Cluster::Allocated { .. } => Content::Data,
            Cluster::Unallocated => Content::Unallocated,
        }
    }
}

/// Where the sector count begins in the descriptor of a compressed cluster.
fn compressed_shift(geometry: &Geometry) -> u32 {
    62 - (geometry.cluster_bits - 8)
}

/// Compressed data must lie below this host offset.
pub(crate) fn compressed_limit(geometry: &Geometry) -> u64 {
    HOST_LIMIT.min(1 << compressed_shift(geometry))
}
