//! Counting what the L1 and L2 tables use.

use crate::error::{Error, Result};
use crate::formats::qcow2::check::Check;
use crate::formats::qcow2::layout::geometry::{COPIED, OFFSET_MASK};
use crate::formats::qcow2::layout::l2::{COMPRESSED, L2Entry, ZERO};

/// Reserved bits of an L1 entry, and of an L2 entry that is not of a compressed cluster.
const L1_RESERVED: u64 = 0x7f00_0000_0000_01ff;
const L2_RESERVED: u64 = 0x3f00_0000_0000_01fe;
/// The halves of a subcluster bitmap: those with data, and those that read as zeroes.
const ALLOCATED: u64 = 0xffff_ffff;

/// How a table is walked.
#[derive(Debug, Clone, Copy)]
pub(in crate::formats::qcow2) struct Walk {
    pub(in crate::formats::qcow2) offset: u64,
    /// How often it is used.
    pub(in crate::formats::qcow2) uses: u64,
    /// How often by the active L1 table: the statistics count only those uses.
    active: u64,
    pub(in crate::formats::qcow2) fix: bool,
}

impl Check<'_> {
    /// Counts everything but the refcount structure.
    pub(in crate::formats::qcow2) fn count_all(&mut self, fix: bool) -> Result<()> {
        self.walked.clear();
        self.count(0, self.geometry.cluster_size(), 1);
        let (l1, entries) = (self.header.l1_offset, u64::from(self.header.l1_size));
        self.count_tree(l1, entries, true, fix)?;
        self.count_snapshots(fix)?;
        self.walk_again(fix)?;
        let (offset, len) = (self.header.snapshots_offset, self.snapshot_bytes);
        self.count(offset, len, 1);
        self.count_bitmaps()
    }

    /// Counts an L1 table and all it leads to.
    pub(in crate::formats::qcow2) fn count_tree(
        &mut self,
        offset: u64,
        entries: u64,
        active: bool,
        fix: bool,
    ) -> Result<()> {
        self.count_table(offset, entries)?;
        self.each_word(offset, entries, |check, _, entry| {
            if entry & L1_RESERVED != 0 {
                check.corruption(format!(
                    "ERROR found L1 entry with reserved bits set: {entry:x}"
                ));
            }
            let l2 = entry & OFFSET_MASK;
            let size = check.geometry.cluster_size();
            check.count(l2, size, 1);
            if !l2.is_multiple_of(size) {
                check.corruption(format!(
                    "ERROR l2_offset={l2:x}: Table is not cluster aligned; L1 entry corrupted"
                ));
            }
            check.meet(l2, active, fix)
        })
    }

    /// Walks a table at its first use. A table with further uses is walked once more in the end, for all of them, so
    /// that the time does not grow with the number of snapshots.
    pub(in crate::formats::qcow2) fn meet(
        &mut self,
        l2: u64,
        active: bool,
        fix: bool,
    ) -> Result<()> {
        if let Some((uses, active_uses)) = self.walked.get_mut(&l2) {
            *uses += 1;
            *active_uses += u64::from(active);
            return Ok(());
        }
        if l2 >= self.file_len {
            // Nothing but zeroes.
            return Ok(());
        }
        self.walked.insert(l2, (0, 0));
        self.walk(Walk {
            offset: l2,
            uses: 1,
            active: u64::from(active),
            fix,
        })
    }

    pub(in crate::formats::qcow2) fn walk_again(&mut self, fix: bool) -> Result<()> {
        let again = self.walked.iter().filter(|(_, (uses, _))| *uses > 0);
        let mut again: Vec<Walk> = again
            .map(|(offset, (uses, active))| Walk {
                offset: *offset,
                uses: *uses,
                active: *active,
                fix,
            })
            .collect();
        again.sort_unstable_by_key(|walk| walk.offset);
        again.into_iter().try_for_each(|walk| self.walk(walk))
    }

    fn walk(&mut self, walk: Walk) -> Result<()> {
        let size = self.geometry.l2_entry_size();
        let mut expected = 0;
        self.each_piece(
            walk.offset,
            self.geometry.cluster_size(),
            |check, at, piece| {
                for (index, bytes) in (at / size..).zip(piece.chunks_exact(size as usize)) {
                    let entry = L2Entry::from_bytes(bytes);
                    if entry != L2Entry::default() {
                        check.count_entry(&walk, index, entry, &mut expected)?;
                    }
                }
                Ok(())
            },
        )
    }

    fn count_entry(
        &mut self,
        walk: &Walk,
        index: u64,
        entry: L2Entry,
        expected: &mut u64,
    ) -> Result<()> {
        let uses = walk.uses;
        if entry.word & COMPRESSED != 0 {
            self.count_compressed(walk, index, entry);
            return Ok(());
        }
        let word = entry.word;
        if word & L2_RESERVED != 0 {
            let message = format!("ERROR found l2 entry with reserved bits set: {word:x}");
            self.corruptions(uses, message);
            self.note_damaged(walk, index, entry);
        }
        let offset = word & OFFSET_MASK;
        let external = self.header.external_data();
        let is_zero = !self.geometry.extended_l2 && word & ZERO != 0;
        if offset == 0 && (is_zero || !(external && word & COPIED != 0)) {
            if !is_zero && entry.bitmap & ALLOCATED != 0 {
                let message =
                    "ERROR: Unallocated cluster has non-zero subcluster allocation map".to_owned();
                self.corruptions(uses, message);
            }
            return Ok(());
        }
        if entry.bitmap >> 32 & entry.bitmap != 0 {
            self.corruptions(
                uses,
                format!(
                    "ERROR offset={offset:x}: Allocated cluster has corrupted subcluster allocation bitmap"
                ),
            );
        }
        let size = self.geometry.cluster_size();
        if !offset.is_multiple_of(size) && self.unaligned(walk, index, entry)? {
            return Ok(());
        }
        if walk.active > 0 {
            self.result.allocated_clusters += walk.active;
            if *expected != 0 && *expected != offset {
                self.result.fragmented_clusters += walk.active;
            }
            *expected = offset + size;
        }
        if !external {
            self.count(offset, size, uses);
        }
        Ok(())
    }

    fn count_compressed(&mut self, walk: &Walk, index: u64, entry: L2Entry) {
        let uses = walk.uses;
        let word = entry.word & !COPIED;
        let (host, len) = L2Entry { word, bitmap: 0 }.compressed_place(&self.geometry);
        if entry.word & COPIED != 0 {
            self.corruptions(
                uses,
                format!(
                    "ERROR: coffset={:#x}: copied flag must never be set for compressed clusters",
                    host.0
                ),
            );
        }
        if self.header.external_data() {
            let message =
                format!("ERROR compressed cluster {index} with data file, entry={word:#x}");
            return self.corruptions(uses, message);
        }
        if entry.bitmap != 0 {
            return self.corruptions(
                uses,
                format!(
                    "ERROR compressed cluster {index} with non-zero subcluster allocation bitmap, entry={word:#x}"
                ),
            );
        }
        self.count(host.0, len, uses);
        // Compressed clusters are fragmented by nature.
        self.result.allocated_clusters += walk.active;
        self.result.compressed_clusters += walk.active;
        self.result.fragmented_clusters += walk.active;
    }

    /// Handles an entry that points into the middle of a cluster. Without data it loses its host offset now; with data
    /// it may be repaired later. Returns whether the caller must not count it.
    fn unaligned(&mut self, walk: &Walk, index: u64, entry: L2Entry) -> Result<bool> {
        let offset = entry.word & OFFSET_MASK;
        let holds_data = match self.geometry.extended_l2 {
            true => entry.bitmap & ALLOCATED != 0,
            false => entry.word & ZERO == 0,
        };
        if holds_data {
            self.corruptions(
                walk.uses,
                format!(
                    "ERROR offset={offset:x}: Data cluster is not properly aligned; L2 entry corrupted."
                ),
            );
            return Ok(self.note_damaged(walk, index, entry));
        }
        let word = if walk.fix { "Repairing" } else { "ERROR" };
        self.corruptions(
            walk.uses,
            format!(
                "{word} offset={offset:x}: Preallocated cluster is not properly aligned; L2 entry corrupted."
            ),
        );
        if walk.fix {
            self.zero_entry(walk, index, entry)?;
        }
        Ok(walk.fix)
    }

    fn zero_entry(&mut self, walk: &Walk, index: u64, entry: L2Entry) -> Result<()> {
        let size = self.geometry.l2_entry_size();
        let place = walk.offset + index * size;
        if self.holds_other_metadata(place, size) {
            self.report("ERROR: Overlap check failed".to_owned());
            self.result.check_errors += 1;
            return Err(Error::corrupt("Input/output error"));
        }
        let mut bytes = match self.geometry.extended_l2 {
            true => [0u64, entry.bitmap & !ALLOCATED],
            false => [ZERO, 0],
        }
        .map(u64::to_be_bytes)
        .concat();
        bytes.truncate(size as usize);
        self.write(place, &bytes)?;
        self.sync()?;
        self.result.corruptions -= walk.uses;
        self.result.corruptions_fixed += walk.uses;
        Ok(())
    }

    /// What an L2 entry says about the cluster, as far as the flag needs it.
    pub(in crate::formats::qcow2) fn flagged_place(&self, entry: L2Entry) -> Option<u64> {
        let offset = entry.word & OFFSET_MASK;
        let is_zero = !self.geometry.extended_l2 && entry.word & ZERO != 0;
        let external = self.header.external_data() && entry.word & COPIED != 0 && !is_zero;
        let allocated = entry.word & COMPRESSED == 0 && (offset != 0 || external);
        allocated.then_some(offset)
    }

    /// Whether what is repaired here (a tree's table) is really something else, which a repair must not overwrite.
    pub(in crate::formats::qcow2) fn holds_other_metadata(&self, offset: u64, len: u64) -> bool {
        let size = self.geometry.cluster_size();
        let (first, last) = (offset / size, (offset + len - 1) / size);
        let touches = |start: u64, bytes: u64| {
            bytes > 0 && start / size <= last && (start.saturating_add(bytes) - 1) / size >= first
        };
        let header = &self.header;
        let table_bytes = self.table.len() as u64 * 8;
        let bitmaps = crate::formats::qcow2::layout::bitmap::BitmapsExtension::of(header)
            .ok()
            .flatten();
        first == 0
            || touches(header.l1_offset, u64::from(header.l1_size) * 8)
            || touches(header.refcount_table_offset, table_bytes)
            || touches(header.snapshots_offset, self.snapshot_bytes)
            || bitmaps.is_some_and(|at| touches(at.directory_offset, at.directory_size))
            || (self.snapshots.iter())
                .any(|snapshot| touches(snapshot.l1_offset, u64::from(snapshot.l1_size) * 8))
            || (self.table.iter())
                .any(|entry| entry & OFFSET_MASK != 0 && touches(entry & OFFSET_MASK, size))
    }
}
