//! Noting changes for a process to come, and making those that a former one noted.

use std::collections::{HashMap, HashSet};

use crate::address::{ClusterIndex, HostOffset};
use crate::engine::journal::{Change, Journal};
use crate::engine::{Engine, Freed, Stop, Undo};
use crate::error::Error;

impl Engine {
    /// Notes what changes from now on; everything until now is written.
    pub(crate) fn set_journal(&mut self, journal: Option<Journal>) {
        self.journal = journal;
    }

    /// Notes what the operation that has just come to its end changed.
    pub(super) fn note_changes(&mut self) {
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
                Undo::Freed(index) => self.freed.get(index).copied().map(Change::Freed),
                Undo::Hint(_) | Undo::Overlap(_) | Undo::Tail(_) => None,
            });
        }
        journal.note(&changes);
    }

    /// Makes changes that a former process had made, of which any part may be in the file. If somebody else has written to the tables
    /// meanwhile, none is made. Returns what no table uses any more once they are on the medium.
    pub(crate) fn replay(&mut self, changes: &[Change]) -> Result<Vec<Freed>, Stop> {
        self.check_usable()?;
        let size = self.geometry.cluster_size();
        let mut created = HashSet::new();
        let mut possible: HashMap<u64, Vec<u64>> = HashMap::new();
        for change in changes {
            match *change {
                Change::Created { offset, len, .. } => {
                    let cluster = self.geometry.cluster_of(HostOffset(offset));
                    // It may be in use already. Whether it is this one's use is seen by the counts.
                    if cluster == ClusterIndex(0) || len != size || !offset.is_multiple_of(size) {
                        return Err(misfit());
                    }
                    created.insert(cluster);
                }
                Change::Word {
                    offset, old, new, ..
                } => {
                    let cluster = self.geometry.cluster_of(HostOffset(offset));
                    if created.contains(&cluster) {
                        continue;
                    }
                    let is_table = cluster != ClusterIndex(0) && self.overlap.contains(cluster);
                    if !is_table || !offset.is_multiple_of(8) {
                        return Err(misfit());
                    }
                    possible.entry(offset).or_default().extend([old, new]);
                }
                Change::Freed(_) => {}
            }
        }
        for (offset, values) in &possible {
            if !values.contains(&self.get(*offset)?) {
                return Err(misfit());
            }
        }
        let mut unused = Vec::new();
        for change in changes {
            match *change {
                Change::Word {
                    table, offset, new, ..
                } => self.set(table, offset, new)?,
                Change::Created { table, offset, len } => {
                    self.pages.create(table, offset, len, &mut self.undo);
                    self.mark_metadata(self.geometry.cluster_of(HostOffset(offset)));
                }
                Change::Freed(freed) => unused.push(freed),
            }
        }
        Ok(unused)
    }

    /// What a replay said that no table uses any more.
    pub(crate) fn give_up(&mut self, unused: &[Freed]) {
        for freed in unused {
            self.free_later(freed.host, freed.clusters);
        }
    }
}

fn misfit() -> Stop {
    Error::invalid("the tables that a former process left do not fit the image as it is now").into()
}
