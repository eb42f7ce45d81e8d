//! What is to be written next.

use crate::address::{ClusterIndex, HostOffset};
use crate::engine::{Engine, Freed, Stop, Table};
use crate::feature;

/// Writes that may reach the medium in any order among themselves.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) table: Table,
    pub(crate) writes: Vec<(u64, Vec<u8>)>,
}

/// Clusters freed in one step, so that memory for undo stays bounded.
const FREE_STEP: u64 = 4096;
/// Frees that may wait.
const MAX_FREED: usize = 1 << 16;

impl Engine {
    /// The unwritten parts of a table. All batches of the tables before it must be on the medium.
    pub(crate) fn batch(&self, table: Table) -> Option<Batch> {
        let writes = self.pages.dirty_runs(table);
        (!writes.is_empty()).then_some(Batch { table, writes })
    }

    /// The batch was written.
    pub(crate) fn batch_written(&mut self, batch: &Batch) {
        self.pages.mark_clean(batch.table);
    }

    /// Whether anything is to be written.
    pub(crate) fn is_clean(&self) -> bool {
        self.freed.is_empty()
            && [Table::Refcounts, Table::Blocks, Table::L2, Table::L1]
                .iter()
                .all(|table| !self.pages.has_dirty(*table))
    }

    /// Whether the tables on the file lack something that was written or discarded. Refcounts that lag do not matter for that.
    pub(crate) fn is_ahead(&self) -> bool {
        self.pages.has_dirty(Table::L2) || self.pages.has_dirty(Table::L1)
    }

    /// Whether refcounts may stay behind for now.
    pub(crate) fn refcounts_may_wait(&self) -> bool {
        self.header.lazy_refcounts() && !self.pages.is_crowded()
    }

    /// Whether the dirty bit must be set before L2 entries are written.
    pub(crate) fn needs_dirty_bit(&self) -> bool {
        self.header.incompatible & feature::DIRTY == 0
            && (self.pages.has_dirty(Table::Refcounts) || self.pages.has_dirty(Table::Blocks))
    }

    /// So much waits to be written that it should be before more comes.
    pub(crate) fn wants_commit(&self) -> bool {
        self.pages.is_crowded() || self.freed.len() > MAX_FREED
    }

    /// What is freed once everything up to the L1 entries is on the medium.
    pub(crate) fn take_freed(&mut self) -> Vec<Freed> {
        let mut runs: Vec<Freed> = Vec::new();
        let size = self.geometry.cluster_size();
        for freed in std::mem::take(&mut self.freed) {
            match runs.last_mut() {
                Some(last) if last.host.0 + last.clusters * size == freed.host.0 => {
                    last.clusters += freed.clusters
                }
                _ => runs.push(freed),
            }
        }
        runs
    }

    /// Lowers the refcounts of (the beginning of) a run; returns how many clusters that was, and which of them are free now.
    pub(crate) fn apply_freed(&mut self, freed: Freed) -> Result<(u64, Vec<Freed>), Stop> {
        let first = self.geometry.cluster_of(freed.host).0;
        let count = freed.clusters.min(FREE_STEP);
        let mut free: Vec<Freed> = Vec::new();
        for cluster in first..first + count {
            if self.dereference(ClusterIndex(cluster))? > 0 {
                continue;
            }
            match free.last_mut() {
                Some(last) if self.geometry.cluster_of(last.host).0 + last.clusters == cluster => {
                    last.clusters += 1
                }
                _ => free.push(Freed {
                    host: self.geometry.offset_of(ClusterIndex(cluster)),
                    clusters: 1,
                }),
            }
        }
        Ok((count, free))
    }

    /// These clusters hold no metadata any more, if they ever did.
    pub(crate) fn forget(&mut self, freed: Freed) {
        let size = self.geometry.cluster_size();
        for index in 0..freed.clusters {
            let host = HostOffset(freed.host.0 + index * size);
            let cluster = self.geometry.cluster_of(host);
            if self.overlap.contains(cluster) {
                self.overlap.remove(cluster);
                self.pages.forget(host.0, size);
            }
        }
    }
}
