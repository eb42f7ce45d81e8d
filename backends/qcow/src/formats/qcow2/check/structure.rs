//! The refcount table and its blocks.

use crate::error::Result;
use crate::formats::qcow2::check::Check;
use crate::formats::qcow2::layout::geometry::Geometry;

/// Bits of an entry of the refcount table that hold the offset of a block; the others are reserved.
pub(in crate::formats::qcow2) const BLOCK_MASK: u64 = 0xffff_ffff_ffff_fe00;

/// Most clusters that a repair adds to the file for the sake of a refcount block.
const MAX_GROWTH: u64 = 1 << 24;

/// The block that describes some clusters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::formats::qcow2) enum BlockAt {
    /// None: their refcounts are zero.
    Nowhere,
    At(u64),
    /// Where no block can be.
    Unreadable(u64),
}

impl BlockAt {
    pub(in crate::formats::qcow2) fn of(entry: u64, geometry: &Geometry) -> Self {
        let offset = entry & BLOCK_MASK;
        let last = i64::MAX as u64 - geometry.cluster_size();
        match offset {
            0 => Self::Nowhere,
            _ if !offset.is_multiple_of(geometry.cluster_size()) || offset > last => {
                Self::Unreadable(offset)
            }
            _ => Self::At(offset),
        }
    }
}

impl Check<'_> {
    /// Reads the refcount table. An image without one, or with one where none can be, still can be counted, and gets a
    /// new one.
    pub(in crate::formats::qcow2) fn read_refcount_table(&mut self) -> Result<()> {
        if self.header.refcount_table_clusters == 0 {
            return Ok(());
        }
        if let Err(error) = self.header.check_refcount_table() {
            self.corruption(format!("ERROR: {error}"));
            self.rebuild = true;
            return Ok(());
        }
        let bytes = u64::from(self.header.refcount_table_clusters) << self.header.cluster_bits;
        let mut table = vec![0; (bytes / 8) as usize];
        self.each_word(
            self.header.refcount_table_offset,
            bytes / 8,
            |_, index, entry| {
                if let Some(place) = table.get_mut(index as usize) {
                    *place = entry;
                }
                Ok(())
            },
        )?;
        self.table = table;
        Ok(())
    }

    /// Counts the refcount table and its blocks.
    pub(in crate::formats::qcow2) fn count_refcount_structure(&mut self, fix: bool) -> Result<()> {
        let (offset, len) = (
            self.header.refcount_table_offset,
            self.table.len() as u64 * 8,
        );
        self.count(offset, len, 1);
        let table = std::mem::take(&mut self.table);
        let done = (0u64..)
            .zip(&table)
            .filter(|(_, entry)| **entry != 0)
            .try_for_each(|(index, entry)| self.count_block(index, *entry, fix));
        self.table = table;
        done
    }

    fn count_block(&mut self, index: u64, entry: u64, fix: bool) -> Result<()> {
        let size = self.geometry.cluster_size();
        if entry & !BLOCK_MASK != 0 {
            self.corruption(format!(
                "ERROR refcount table entry {index} has reserved bits set"
            ));
            self.rebuild = true;
            return Ok(());
        }
        if !entry.is_multiple_of(size) {
            self.corruption(format!(
                "ERROR refcount block {index} is not cluster aligned; refcount table entry corrupted"
            ));
            self.rebuild = true;
            return Ok(());
        }
        let cluster = entry >> self.geometry.cluster_bits;
        if cluster >= self.clusters {
            let word = if fix { "Repairing" } else { "ERROR" };
            self.corruption(format!("{word} refcount block {index} is outside image"));
            return if fix { self.extend_to(entry) } else { Ok(()) };
        }
        self.count(entry, size, 1);
        let uses = self.counts.get(cluster);
        if uses != 1 {
            self.corruption(format!("ERROR refcount block {index} refcount={uses}"));
            self.rebuild = true;
        }
        Ok(())
    }

    /// Makes a block beyond the end of the file one of zeroes, as QEMU does; unless the file would grow so much that
    /// whoever looks at it afterwards takes minutes, where QEMU does it all the same.
    fn extend_to(&mut self, offset: u64) -> Result<()> {
        let size = self.geometry.cluster_size();
        let why = if offset > i64::MAX as u64 - size {
            Some("Invalid argument".to_owned())
        } else if offset >> self.geometry.cluster_bits >= self.clusters + MAX_GROWTH {
            Some("File too large".to_owned())
        } else {
            self.storage
                .set_len(offset + size)
                .err()
                .map(|error| error.to_string())
        };
        if let Some(why) = why {
            self.rebuild = true;
            self.report(format!("ERROR could not resize image: {why}"));
            return Ok(());
        }
        self.extents.forget();
        self.file_len = offset + size;
        self.clusters = self
            .clusters
            .max((offset + size) >> self.geometry.cluster_bits);
        self.result.corruptions -= 1;
        self.result.corruptions_fixed += 1;
        self.count(offset, size, 1);
        Ok(())
    }
}
