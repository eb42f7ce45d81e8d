//! Sizes that follow from the header: clusters, tables, entries.

use crate::error::TableFault;
use crate::formats::qcow2::layout::address::{ClusterIndex, GuestOffset, HostOffset};

/// Host offsets have 56 bits in table entries.
pub(crate) const HOST_LIMIT: u64 = 1 << 56;
/// Bits of a table entry that hold a host offset.
pub(crate) const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// The refcount of what the entry points to is exactly one.
pub(crate) const COPIED: u64 = 1 << 63;
/// Largest L1 table in bytes.
pub(crate) const MAX_L1_BYTES: u64 = 32 << 20;
/// Largest refcount table in bytes.
pub(crate) const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;
/// Most snapshots of an image.
pub(crate) const MAX_SNAPSHOTS: u32 = 65536;

/// Sizes of one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub(crate) cluster_bits: u32,
    pub(crate) refcount_order: u32,
    /// L2 entries have 16 bytes and describe 32 subclusters each.
    pub(crate) extended_l2: bool,
    pub(crate) version: u32,
}

impl Geometry {
    pub(crate) fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// The smallest unit an L2 entry describes.
    pub(crate) fn subcluster_size(&self) -> u64 {
        if self.extended_l2 {
            self.cluster_size() / 32
        } else {
            self.cluster_size()
        }
    }

    pub(crate) fn l2_entry_size(&self) -> u64 {
        if self.extended_l2 { 16 } else { 8 }
    }

    pub(crate) fn l2_entries(&self) -> u64 {
        self.cluster_size() / self.l2_entry_size()
    }

    /// Bytes of the disk that one L2 table describes.
    pub(crate) fn l2_span(&self) -> u64 {
        self.cluster_size() * self.l2_entries()
    }

    /// L1 entries that a disk of `size` bytes needs.
    pub(crate) fn l1_entries_for(&self, size: u64) -> u64 {
        size.div_ceil(self.l2_span())
    }

    pub(crate) fn l1_index(&self, guest: GuestOffset) -> u64 {
        guest.0 / self.l2_span()
    }

    pub(crate) fn l2_index(&self, guest: GuestOffset) -> u64 {
        (guest.0 >> self.cluster_bits) % self.l2_entries()
    }

    pub(crate) fn refcount_bits(&self) -> u32 {
        1 << self.refcount_order
    }

    pub(crate) fn refcount_max(&self) -> u64 {
        if self.refcount_order == 6 {
            u64::MAX
        } else {
            (1 << self.refcount_bits()) - 1
        }
    }

    /// Clusters that one refcount block describes.
    pub(crate) fn refcount_block_entries(&self) -> u64 {
        (self.cluster_size() * 8) >> self.refcount_order
    }

    pub(crate) fn cluster_of(&self, host: HostOffset) -> ClusterIndex {
        ClusterIndex(host.0 >> self.cluster_bits)
    }

    pub(crate) fn offset_of(&self, cluster: ClusterIndex) -> HostOffset {
        HostOffset(cluster.0 << self.cluster_bits)
    }

    pub(crate) fn align_down(&self, value: u64) -> u64 {
        value & !(self.cluster_size() - 1)
    }

    /// Clusters that `bytes` bytes take.
    pub(crate) fn clusters_for(&self, bytes: u64) -> u64 {
        bytes.div_ceil(self.cluster_size())
    }

    /// Checks the place of a table: aligned, not at 0, below the limit of host offsets, no larger than `max_bytes`.
    pub(crate) fn check_table(
        &self,
        offset: u64,
        bytes: u64,
        max_bytes: u64,
    ) -> Result<(), TableFault> {
        if bytes > max_bytes {
            return Err(TableFault::TooLarge);
        }
        let end = offset.checked_add(bytes);
        if offset == 0
            || !offset.is_multiple_of(self.cluster_size())
            || end.is_none_or(|end| end > HOST_LIMIT)
        {
            return Err(TableFault::Misplaced);
        }
        Ok(())
    }
}
