//! The flag that says a refcount is exactly one, in the active tables.

use crate::error::{Error, Result};
use crate::formats::qcow2::check::Check;
use crate::formats::qcow2::check::counts::Stored;
use crate::formats::qcow2::layout::address::HostOffset;
use crate::formats::qcow2::layout::geometry::{COPIED, OFFSET_MASK};
use crate::formats::qcow2::layout::l2::{COMPRESSED, L2Entry};
use crate::report::Repair;

impl Check<'_> {
    /// Compares the flags with the refcounts, and sets them right if that is wanted.
    pub(in crate::formats::qcow2) fn check_copied(&mut self, stored: &Stored) -> Result<()> {
        let repairs = self.repairs_flags();
        let (offset, len) = (self.header.l1_offset, u64::from(self.header.l1_size) * 8);
        let mut tables = std::collections::HashSet::new();
        self.each_piece(offset, len, |check, at, piece| {
            let mut changed = false;
            for (index, bytes) in (at / 8..).zip(piece.chunks_exact_mut(8)) {
                let entry = (&*bytes).try_into().map_or(0, u64::from_be_bytes);
                let l2 = entry & OFFSET_MASK;
                if l2 == 0 {
                    continue;
                }
                let cluster = check.geometry.cluster_of(HostOffset(l2)).0;
                let Some(refcount) = check.refcount_of(cluster, stored) else {
                    continue;
                };
                if (refcount == 1) != (entry & COPIED != 0) {
                    check.wrong_flag(
                        repairs,
                        &format!(
                            "OFLAG_COPIED L2 cluster: l1_index={index} l1_entry={entry:x} refcount={refcount}"
                        ),
                    );
                    bytes.copy_from_slice(&(entry ^ COPIED).to_be_bytes());
                    changed = true;
                }
                if l2 < check.file_len && tables.insert(l2) {
                    check.check_copied_l2(l2, repairs, stored)?;
                }
            }
            if changed && repairs {
                check.write(offset + at, piece)?;
            }
            Ok(())
        })
    }

    /// While leaks are repaired, flags are only if nothing else is wrong: then that is safe.
    fn repairs_flags(&self) -> bool {
        let result = &self.result;
        let sound = result.check_errors == 0 && result.corruptions == 0 && result.leaks == 0;
        self.repair == Repair::All || (self.repair == Repair::Leaks && sound)
    }

    fn wrong_flag(&mut self, repairs: bool, message: &str) {
        let word = if repairs { "Repairing" } else { "ERROR" };
        self.report(format!("{word} {message}"));
        if repairs {
            self.result.corruptions_fixed += 1;
        } else {
            self.result.corruptions += 1;
        }
    }

    fn check_copied_l2(&mut self, l2: u64, repairs: bool, stored: &Stored) -> Result<()> {
        let entry_size = self.geometry.l2_entry_size() as usize;
        self.each_piece(l2, self.geometry.cluster_size(), |check, at, piece| {
            let mut changed = false;
            for bytes in piece.chunks_exact_mut(entry_size) {
                let entry = L2Entry::from_bytes(bytes);
                let Some(word) = check.flag_of(entry, repairs, stored) else {
                    continue;
                };
                if let Some(place) = bytes.get_mut(..8) {
                    place.copy_from_slice(&word.to_be_bytes());
                    changed = true;
                }
            }
            if !changed || !repairs {
                return Ok(());
            }
            if check.holds_other_metadata(l2 + at, piece.len() as u64) {
                check.report(
                    "ERROR: Could not write L2 table; metadata overlap check failed: Input/output error"
                        .to_owned(),
                );
                check.result.check_errors += 1;
                return Err(Error::corrupt("Input/output error"));
            }
            check.write(l2 + at, piece)
        })
    }

    /// The entry as it should be, if it is not.
    fn flag_of(&mut self, entry: L2Entry, repairs: bool, stored: &Stored) -> Option<u64> {
        let word = entry.word;
        if word & COMPRESSED != 0 {
            // Never right, and counted as a corruption when the tables were walked; QEMU leaves it there.
            let mends = word & COPIED != 0 && self.repair == Repair::All;
            if mends && self.result.corruptions > 0 {
                self.result.corruptions -= 1;
                self.result.corruptions_fixed += 1;
            }
            return mends.then_some(word & !COPIED);
        }
        let host = self.flagged_place(entry)?;
        // In an external data file nothing is shared.
        let refcount = if self.header.external_data() {
            1
        } else {
            self.refcount_of(self.geometry.cluster_of(HostOffset(host)).0, stored)?
        };
        if (refcount == 1) == (word & COPIED != 0) {
            return None;
        }
        self.wrong_flag(
            repairs,
            &format!("OFLAG_COPIED data cluster: l2_entry={word:x} refcount={refcount}"),
        );
        Some(word ^ COPIED)
    }
}
