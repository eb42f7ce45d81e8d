//! Records changes in the journal, and replays those of a process that was killed.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::Error;
use crate::formats::qcow2::engine::{Engine, Stop, Undo};
use crate::formats::qcow2::journal::log::{Change, Journal};
use crate::formats::qcow2::journal::{Freed, JournalContents};
use crate::formats::qcow2::layout::address::{ClusterIndex, HostOffset};
use crate::formats::qcow2::layout::geometry::{HOST_LIMIT, OFFSET_MASK};
use crate::formats::qcow2::layout::l2::{self, COMPRESSED};
use crate::formats::qcow2::layout::table::Table;

impl Engine {
    /// Records changes from now on; everything until now is written.
    pub(crate) fn set_journal(&mut self, journal: Option<Journal>) {
        self.journal = journal;
    }

    /// Records what the operation that has just ended changed.
    pub(super) fn record_changes(&mut self) {
        let Some(journal) = &mut self.journal else {
            return;
        };
        if self.undo.is_empty() {
            return;
        }
        let mut changes = Vec::with_capacity(self.undo.len());
        for undo in &self.undo {
            changes.extend(match *undo {
                Undo::Word { offset, value, .. } => {
                    self.pages.changed(offset).map(|(table, new)| Change::Word {
                        table,
                        offset,
                        old: value,
                        new,
                    })
                }
                Undo::Created { offset, len } => self
                    .pages
                    .changed(offset)
                    .map(|(table, _)| Change::Created { table, offset, len }),
                Undo::Owed(run) => Some(Change::Owed(run)),
                Undo::Settled { before, clusters } => Some(Change::Settled {
                    number: before.number,
                    clusters,
                }),
                Undo::Freed(_) | Undo::Hint(_) | Undo::Overlap(_) | Undo::Tail(_) => None,
            });
        }
        journal.note(&changes);
    }

    /// Replays the changes of a process that was killed, any part of which may be in the file. Nothing is changed
    /// unless each change fits this image: it lies within the tables, the file has its old or its new value, and the
    /// format allows the new one.
    pub(crate) fn replay(&mut self, left: &JournalContents) -> Result<(), Stop> {
        self.check_usable()?;
        let size = self.geometry.cluster_size();
        let mut created = BTreeSet::new();
        let mut possible: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        for change in &left.changes {
            match *change {
                Change::Created { table, offset, len } => {
                    let cluster = self.geometry.cluster_of(HostOffset(offset));
                    let fits = matches!(table, Table::Refcounts | Table::L2) && offset < HOST_LIMIT;
                    // It may be a table already. Whether it is this one is seen by the counts.
                    if !fits || cluster.0 == 0 || len != size || !offset.is_multiple_of(size) {
                        return Err(misfit());
                    }
                    created.insert(cluster);
                }
                Change::Word {
                    table,
                    offset,
                    old,
                    new,
                } => {
                    let cluster = self.geometry.cluster_of(HostOffset(offset));
                    if !offset.is_multiple_of(8) || !self.is_possible(table, offset, new) {
                        return Err(misfit());
                    }
                    if created.contains(&cluster) {
                        continue;
                    }
                    if cluster.0 == 0 || !self.overlap.contains(cluster) {
                        return Err(misfit());
                    }
                    possible.entry(offset).or_default().extend([old, new]);
                }
                Change::Owed(_) | Change::Settled { .. } | Change::Gap => {}
            }
        }
        let mut later = BTreeSet::new();
        for (offset, values) in &possible {
            if !values.contains(&self.get(*offset)?) {
                // A change that was not recorded any more has reached the file.
                if !left.has_gap {
                    return Err(misfit());
                }
                later.insert(*offset);
            }
        }
        for change in &left.changes {
            match *change {
                Change::Word {
                    table, offset, new, ..
                } if !later.contains(&offset) => self.set(table, offset, new)?,
                Change::Created { table, offset, len } => {
                    self.pages.create(table, offset, len, &mut self.undo);
                    self.mark_metadata(self.geometry.cluster_of(HostOffset(offset)));
                }
                _ => {}
            }
        }
        self.check_references(left)
    }

    /// Whether the format allows the value in a table of this kind, which is where the header says.
    fn is_possible(&self, table: Table, offset: u64, value: u64) -> bool {
        let aligned =
            |value: u64| (value & OFFSET_MASK).is_multiple_of(self.geometry.cluster_size());
        let within = |start: u64, bytes: u64| (start..start + bytes).contains(&offset);
        match table {
            Table::Refcounts => true,
            Table::Blocks => {
                let bytes =
                    u64::from(self.header.refcount_table_clusters) << self.geometry.cluster_bits;
                within(self.header.refcount_table_offset, bytes)
                    && value & !OFFSET_MASK == 0
                    && aligned(value)
            }
            Table::L1 => {
                within(self.header.l1_offset, u64::from(self.header.l1_size) * 8)
                    && l2::l1_entry(&self.geometry, 0, value).is_ok()
            }
            // The subclusters of an extended entry are any; what an entry leads to is looked at once all are there.
            Table::L2 => true,
        }
    }

    /// What the changed entries lead to must be counted, and no table may be where data is.
    fn check_references(&mut self, left: &JournalContents) -> Result<(), Stop> {
        for change in &left.changes {
            let Change::Word { table, offset, .. } = *change else {
                continue;
            };
            let word = self.get(offset)?;
            let is_bitmap = self.geometry.extended_l2 && !offset.is_multiple_of(16);
            let host = match table {
                Table::L2 if is_bitmap || word & COMPRESSED != 0 => continue,
                Table::L2 | Table::L1 | Table::Blocks => word & OFFSET_MASK,
                Table::Refcounts => continue,
            };
            if host == 0 {
                continue;
            }
            let cluster = self.geometry.cluster_of(HostOffset(host));
            let is_table = self.overlap.contains(cluster);
            let sound = host.is_multiple_of(self.geometry.cluster_size())
                && is_table == (table != Table::L2)
                && self.refcount(cluster)? > 0;
            if !sound && !left.has_gap {
                return Err(misfit());
            }
        }
        Ok(())
    }

    /// Whether these clusters can have a reference that no table has: they are counted, and no table is in them.
    pub(crate) fn can_be_owed(&mut self, run: &Freed) -> Result<bool, Stop> {
        let first = self.geometry.cluster_of(run.host).0;
        let last = first.saturating_add(run.clusters);
        let aligned = run.host.0.is_multiple_of(self.geometry.cluster_size());
        if !aligned || first == 0 || last > self.refcount_table_end() {
            return Ok(false);
        }
        for cluster in (first..last).map(ClusterIndex) {
            if self.overlap.contains(cluster) || self.refcount(cluster)? == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The tables are not where they were.
    pub(crate) fn forget_metadata(&mut self) {
        self.overlap = super::Overlap::default();
    }
}

fn misfit() -> Stop {
    Error::invalid("what a killed process noted of it does not fit the image as it is now").into()
}
