//! The flag that says a refcount is exactly one, in the active tables.

use std::collections::HashSet;

use crate::address::{GuestOffset, HostOffset};
use crate::check::Check;
use crate::check::counts::Stored;
use crate::engine::to_bytes;
use crate::error::Result;
use crate::geometry::{COPIED, OFFSET_MASK};
use crate::l2::{COMPRESSED, Cluster, L2Entry};
use crate::report::Repair;

impl Check<'_> {
    /// Compares the flags with the refcounts, and sets them right if that is wanted.
    pub(super) fn check_copied(&mut self, stored: &Stored) -> Result<()> {
        let entries = u64::from(self.header.l1_size);
        let Some(mut l1) = self.read_words(self.header.l1_offset, entries) else {
            return Ok(());
        };
        let mut changed = false;
        let mut visited = HashSet::new();
        for (index, entry) in (0u64..).zip(l1.iter_mut()) {
            let l2 = *entry & OFFSET_MASK;
            // An entry with reserved bits leads nowhere: what is there was not counted, and is not put right.
            let reserved = *entry & !(COPIED | OFFSET_MASK) != 0;
            let aligned = l2.is_multiple_of(self.geometry.cluster_size());
            if l2 == 0 || reserved || !aligned || !self.inside(l2) {
                continue;
            }
            let refcount = stored.get(&self.counts, self.geometry.cluster_of(HostOffset(l2)).0);
            if (refcount == 1) != (*entry & COPIED != 0) {
                let message = format!(
                    "OFLAG_COPIED L2 cluster: l1_index={index} l1_entry={entry:x} refcount={refcount}"
                );
                if self.put_right(&message) {
                    *entry ^= COPIED;
                    changed = true;
                }
            }
            if visited.insert(l2) {
                self.check_copied_l2(l2, stored)?;
            }
        }
        if changed {
            self.write(self.header.l1_offset, &to_bytes(&l1))?;
        }
        Ok(())
    }

    /// While leaks are repaired, flags are only if nothing else is wrong: then that is safe.
    fn repairs_flags(&self) -> bool {
        let result = &self.result;
        let sound = result.check_errors == 0 && result.corruptions == 0 && result.leaks == 0;
        self.repair == Repair::All || (self.repair == Repair::Leaks && sound)
    }

    fn inside(&self, offset: u64) -> bool {
        offset >> self.geometry.cluster_bits < self.file_clusters
    }

    /// Reports a wrong flag; returns whether it is to be changed.
    fn put_right(&mut self, message: &str) -> bool {
        let repairs = self.repairs_flags();
        self.tell(format!(
            "{} {message}",
            if repairs { "Repairing" } else { "ERROR" }
        ));
        if repairs {
            self.result.corruptions_fixed += 1;
        } else {
            self.result.corruptions += 1;
        }
        repairs
    }

    fn check_copied_l2(&mut self, l2: u64, stored: &Stored) -> Result<()> {
        let Some(mut table) = self.read_words(l2, self.geometry.cluster_size() / 8) else {
            return Ok(());
        };
        let words = (self.geometry.l2_entry_size() / 8) as usize;
        let external = self.header.external_data();
        let mut changed = false;
        for entry in table.chunks_exact_mut(words) {
            let bitmap = entry.get(1).copied().unwrap_or(0);
            let Some(word) = entry.first_mut() else {
                continue;
            };
            if *word & !COPIED == 0 {
                continue;
            }
            let state = (L2Entry {
                word: *word,
                bitmap,
            })
            .cluster(&self.geometry, external, GuestOffset(0));
            if *word & COMPRESSED != 0 {
                // Counted as a corruption when the tables were walked, unless something worse was found there.
                if *word & COPIED != 0 && state.is_ok() && self.repair == Repair::All {
                    *word &= !COPIED;
                    changed = true;
                    self.result.corruptions = self.result.corruptions.saturating_sub(1);
                    self.result.corruptions_fixed += 1;
                }
                continue;
            }
            let Ok(Cluster::Allocated { host, copied }) = state else {
                continue;
            };
            // In an external data file nothing is shared.
            let refcount = if external {
                1
            } else {
                stored.get(&self.counts, self.geometry.cluster_of(host).0)
            };
            if (refcount == 1) != copied {
                let message =
                    format!("OFLAG_COPIED data cluster: l2_entry={word:x} refcount={refcount}");
                if self.put_right(&message) {
                    *word ^= COPIED;
                    changed = true;
                }
            }
        }
        if changed {
            self.write(l2, &to_bytes(&table))?;
        }
        Ok(())
    }
}
