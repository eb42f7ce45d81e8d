//! Batches of metadata writes.

use crate::error::Result;
use crate::formats::qcow2::engine::{DirtyPages, Engine, Stop};
use crate::formats::qcow2::journal::Freed;
use crate::formats::qcow2::journal::log::Journal;
use crate::formats::qcow2::layout::address::{ClusterIndex, HostOffset};
use crate::formats::qcow2::layout::feature;
use crate::formats::qcow2::layout::header::Header;
use crate::formats::qcow2::layout::table::Table;

/// All metadata that is not in the file yet at one moment, to be written stage by stage.
#[derive(Debug, Default)]
pub(crate) struct MetadataBatch {
    /// The header with the dirty bit, which must be on the medium before the stages, because refcounts are not written
    /// with them.
    pub(crate) header: Option<Header>,
    /// The pages of each table, in the order in which they may reach the medium.
    pub(crate) stages: [DirtyPages; 4],
    /// What no table uses any more once all stages are on the medium.
    freed: Vec<Freed>,
}

/// Clusters freed in one step, so that memory for undo stays bounded.
const FREE_STEP: u64 = 4096;
/// Frees that may wait.
const MAX_FREED: usize = 1 << 16;

impl Engine {
    /// Takes all metadata that is unwritten; with `finish`, refcounts even where they may be lazy. One batch at a time:
    /// the next one may be taken after [`Engine::end_batch`].
    pub(crate) fn take_batch(&mut self, finish: bool) -> Result<MetadataBatch> {
        self.check_usable()?;
        let behind = !finish && self.refcounts_may_wait();
        let mut batch = MetadataBatch::default();
        if behind && self.needs_dirty_bit() {
            let mut header = self.header.clone();
            header.incompatible |= feature::DIRTY;
            batch.header = Some(header);
        }
        for (stage, table) in batch.stages.iter_mut().zip(Table::ALL) {
            if !(behind && matches!(table, Table::Refcounts | Table::Blocks)) {
                *stage = self.pages.take_dirty(table);
            }
        }
        batch.freed = std::mem::take(&mut self.freed);
        if let Some(journal) = &mut self.journal {
            journal.batch_taken();
        }
        Ok(batch)
    }

    /// The batch is on the medium: returns the clusters that are free now. If it was not `written`, it is part of the
    /// next batch.
    pub(crate) fn end_batch(&mut self, batch: MetadataBatch, written: bool) -> Vec<Freed> {
        for stage in &batch.stages {
            self.pages.end_writeback(stage, written);
        }
        if written {
            return self.free_after_batch(batch.freed);
        }
        let later = std::mem::replace(&mut self.freed, batch.freed);
        self.freed.extend(later);
        Vec::new()
    }

    /// No table uses these any more: they are free once their counts say so, which the journal knows.
    fn free_after_batch(&mut self, freed: Vec<Freed>) -> Vec<Freed> {
        let mut runs = joined(&freed, self.geometry.cluster_size());
        if let Some(journal) = &mut self.journal {
            for run in freed {
                journal.forget_owed(run.number);
            }
            for run in &mut runs {
                *run = journal.owe(run.host, run.clusters);
            }
            journal.written();
        }
        runs
    }

    /// Whether there is nothing to write. What is being written does not count.
    pub(crate) fn is_clean(&self) -> bool {
        self.freed.is_empty() && !Table::ALL.iter().any(|table| self.pages.has_dirty(*table))
    }

    /// Whether the tables on the file lack something that was written or discarded, and that is not noted for a process
    /// to come. Refcounts that lag do not matter for that. With a journal: that is not in its file yet.
    pub(crate) fn is_ahead(&self) -> bool {
        if self.journal.as_ref().is_some_and(Journal::is_complete) {
            return false;
        }
        self.pages.has_unwritten(Table::L2) || self.pages.has_unwritten(Table::L1)
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
        let full = self.journal.as_ref().is_some_and(Journal::is_full);
        self.pages.is_crowded() || self.freed.len() > MAX_FREED || full
    }

    /// Which clusters (of the beginning) of a run will be free once [`Engine::apply_freed`] has been called; and
    /// nothing will use them anew until then.
    pub(crate) fn about_to_be_free(&mut self, freed: Freed) -> Result<Vec<Freed>, Stop> {
        let first = self.geometry.cluster_of(freed.host).0;
        let mut free = Vec::new();
        for cluster in first..first + freed.clusters.min(FREE_STEP) {
            if self.refcount(ClusterIndex(cluster))? != 1 {
                continue;
            }
            // A compressed cluster could still be put behind the one that is given up.
            if self
                .tail
                .is_some_and(|tail| self.geometry.cluster_of(HostOffset(tail)).0 == cluster)
            {
                self.set_tail(None);
            }
            free.push(Freed::new(
                self.geometry.offset_of(ClusterIndex(cluster)),
                1,
            ));
        }
        Ok(joined(&free, self.geometry.cluster_size()))
    }

    /// Lowers the refcounts of (the beginning of) a run; returns how many clusters that was, and which of them are free
    /// now.
    pub(crate) fn apply_freed(&mut self, freed: Freed) -> Result<(u64, Vec<Freed>), Stop> {
        let first = self.geometry.cluster_of(freed.host).0;
        let count = freed.clusters.min(FREE_STEP);
        let mut free = Vec::new();
        for cluster in (first..first + count).map(ClusterIndex) {
            if self.dereference(cluster)? == 0 {
                free.push(Freed::new(self.geometry.offset_of(cluster), 1));
            }
        }
        self.settle_owed(freed, count);
        Ok((count, joined(&free, self.geometry.cluster_size())))
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

/// Runs that follow each other, as one.
fn joined(freed: &[Freed], cluster_size: u64) -> Vec<Freed> {
    let mut runs: Vec<Freed> = Vec::new();
    for freed in freed.iter().copied() {
        match runs.last_mut() {
            Some(last) if last.host.0 + last.clusters * cluster_size == freed.host.0 => {
                last.clusters += freed.clusters;
            }
            _ => runs.push(freed),
        }
    }
    runs
}
