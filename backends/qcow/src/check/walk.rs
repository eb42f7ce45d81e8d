//! Counting what the tables use.

use crate::address::GuestOffset;
use crate::bitmap;
use crate::check::Check;
use crate::error::Result;
use crate::geometry::{COPIED, OFFSET_MASK};
use crate::l2::{Cluster, L2Entry};

/// L2 tables walked more often than can be right, at most.
const MAX_EXTRA_WALKS: u64 = 1024;

impl Check<'_> {
    /// Counts everything but the refcount structure.
    pub(super) fn count_all(&mut self) -> Result<()> {
        self.counts.add(0);
        self.count_tree(
            "active L1 table",
            self.header.l1_offset,
            u64::from(self.header.l1_size),
            true,
        );
        self.count_snapshots();
        self.count_bitmaps();
        Ok(())
    }

    fn count_snapshots(&mut self) {
        let header = &self.header;
        if header.snapshots == 0 {
            return;
        }
        if self.snapshots.len() != header.snapshots as usize {
            self.corruption("ERROR: the snapshot table cannot be read".to_owned());
            return;
        }
        match crate::qcow2::read_snapshots(self.storage, &self.header) {
            Ok((_, bytes)) => {
                self.count("snapshot table", self.header.snapshots_offset, bytes);
            }
            Err(error) => self.corruption(format!("ERROR: snapshot table: {error}")),
        }
        for snapshot in self.snapshots {
            let what = format!("L1 table of snapshot {}", snapshot.info.id);
            self.count_tree(
                &what,
                snapshot.l1_offset,
                u64::from(snapshot.l1_size),
                false,
            );
        }
    }

    fn count_bitmaps(&mut self) {
        let extension = match bitmap::BitmapsExtension::of(&self.header) {
            Ok(None) => return,
            Ok(Some(extension)) => extension,
            Err(error) => return self.corruption(format!("ERROR: {error}")),
        };
        if !self.count(
            "bitmap directory",
            extension.directory_offset,
            extension.directory_size,
        ) {
            return;
        }
        let bitmaps = match bitmap::read_directory(self.storage, &self.header) {
            Ok(bitmaps) => bitmaps,
            Err(error) => return self.corruption(format!("ERROR: {error}")),
        };
        for bitmap in bitmaps {
            let what = format!("bitmap '{}'", bitmap.name);
            if !self.count(&what, bitmap.table_offset, u64::from(bitmap.table_size) * 8) {
                continue;
            }
            let Some(table) = self.read_words(bitmap.table_offset, u64::from(bitmap.table_size))
            else {
                continue;
            };
            for entry in table {
                match bitmap::table_entry(&self.geometry, entry) {
                    Ok(Some(offset)) => {
                        self.count(&what, offset, self.geometry.cluster_size());
                    }
                    Ok(None) => {}
                    Err(error) => self.corruption(format!("ERROR: {what}: {error}")),
                }
            }
        }
    }

    /// Counts an L1 table and all it leads to.
    fn count_tree(&mut self, what: &str, offset: u64, entries: u64, active: bool) {
        if entries == 0 || !self.count(what, offset, entries * 8) {
            return;
        }
        let Some(table) = self.read_words(offset, entries) else {
            return;
        };
        self.trees += 1;
        for (index, entry) in (0..).zip(table) {
            let l2 = entry & OFFSET_MASK;
            if l2 == 0 {
                if entry & !COPIED != 0 {
                    self.corruption(format!(
                        "ERROR: {what}: entry {index} has reserved bits set: {entry:#x}"
                    ));
                }
                continue;
            }
            if entry & !(COPIED | OFFSET_MASK) != 0
                || !l2.is_multiple_of(self.geometry.cluster_size())
            {
                self.corruption(format!(
                    "ERROR l2_offset={l2:x}: Table is not cluster aligned; L1 entry corrupted"
                ));
                continue;
            }
            if self.count("L2 table", l2, self.geometry.cluster_size()) && self.may_walk(l2) {
                self.count_l2(l2, GuestOffset(index * self.geometry.l2_span()), active);
            }
        }
    }

    /// Each tree leads to an L2 table once. Where it does more often, some walks more are done for the sake of a repair, but an
    /// image made for it must not keep us for ever.
    fn may_walk(&mut self, l2: u64) -> bool {
        let cluster = l2 >> self.geometry.cluster_bits;
        self.walked.add(cluster);
        if self.walked.get(cluster) <= self.trees {
            return true;
        }
        self.extra_walks += 1;
        if self.extra_walks == MAX_EXTRA_WALKS {
            self.corruption("ERROR: too many L1 entries point to the same L2 tables".to_owned());
        }
        self.extra_walks < MAX_EXTRA_WALKS
    }

    fn count_l2(&mut self, offset: u64, guest: GuestOffset, active: bool) {
        let Some(table) = self.read_words(offset, self.geometry.cluster_size() / 8) else {
            return;
        };
        let size = self.geometry.cluster_size();
        let words = (self.geometry.l2_entry_size() / 8) as usize;
        let external = self.header.external_data();
        let mut expected = None;
        for (index, entry) in (0..).zip(table.chunks_exact(words)) {
            let (word, bitmap) = (
                entry.first().copied().unwrap_or(0),
                entry.get(1).copied().unwrap_or(0),
            );
            if word == 0 && bitmap == 0 {
                continue;
            }
            let guest = GuestOffset(guest.0 + index * size);
            match (L2Entry { word, bitmap }).cluster(&self.geometry, external, guest) {
                Err(error) => self.corruption(format!("ERROR: {error}")),
                Ok(Cluster::Unallocated) => {}
                Ok(Cluster::Compressed { host, len }) => {
                    if word & COPIED != 0 {
                        self.corruption(format!(
                            "ERROR: coffset={:#x}: copied flag must never be set for compressed clusters",
                            host.0
                        ));
                    }
                    self.count("compressed cluster", host.0, len);
                    if active {
                        self.result.allocated_clusters += 1;
                        self.result.compressed_clusters += 1;
                        // Compressed clusters are fragmented by nature.
                        self.result.fragmented_clusters += 1;
                    }
                }
                Ok(Cluster::Allocated { host, .. }) => {
                    if active {
                        self.result.allocated_clusters += 1;
                        if expected.is_some_and(|expected| expected != host.0) {
                            self.result.fragmented_clusters += 1;
                        }
                        expected = Some(host.0 + size);
                    }
                    if !external {
                        self.count("data cluster", host.0, size);
                    }
                }
            }
        }
    }
}
