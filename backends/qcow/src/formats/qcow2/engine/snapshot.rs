//! Whole trees of tables, of snapshots too.

use crate::error::Result;
use crate::formats::qcow2::engine::{Engine, Stop};
use crate::formats::qcow2::journal::Freed;
use crate::formats::qcow2::layout::address::{ClusterIndex, GuestOffset, HostOffset};
use crate::formats::qcow2::layout::geometry::COPIED;
use crate::formats::qcow2::layout::l2::{self, COMPRESSED, Cluster, ZERO};
use crate::formats::qcow2::layout::table::Table;

impl Engine {
    /// The L2 tables that entries of an L1 table point to, checked: (index, host offset).
    pub(crate) fn l2_tables(&self, l1: &[u64]) -> Result<Vec<(u64, HostOffset)>> {
        let mut tables = Vec::new();
        for (index, entry) in (0..).zip(l1) {
            if let Some((table, _)) = l2::l1_entry(&self.geometry, index, *entry)? {
                tables.push((index, table));
            }
        }
        Ok(tables)
    }

    /// The clusters that one L2 table uses, itself not included; one entry per use.
    fn uses_of(&mut self, table: HostOffset) -> Result<Vec<ClusterIndex>, Stop> {
        let mut uses = Vec::new();
        for index in 0..self.geometry.l2_entries() {
            let entry = self.l2_entry(table.0 + index * self.geometry.l2_entry_size())?;
            if entry.word & !COPIED == 0 {
                continue;
            }
            let state = self.classify(&entry, GuestOffset(0))?;
            if let Some(Freed { host, clusters, .. }) = self.space_of(&state)? {
                let first = self.geometry.cluster_of(host).0;
                uses.extend((first..first + clusters).map(ClusterIndex));
            }
        }
        Ok(uses)
    }

    /// One use less of an L2 table and all it uses; returns what is free now. No table on the medium may lead to it.
    pub(crate) fn dereference_tree(&mut self, table: HostOffset) -> Result<Vec<Freed>, Stop> {
        let mut uses = self.uses_of(table)?;
        uses.push(self.geometry.cluster_of(table));
        let mut free = Vec::new();
        for cluster in uses {
            if self.dereference(cluster)? == 0 {
                free.push(Freed::new(self.geometry.offset_of(cluster), 1));
            }
        }
        Ok(free)
    }

    /// One use less of clusters that no table on the medium leads to; returns what is free now.
    pub(crate) fn dereference_run(
        &mut self,
        host: HostOffset,
        clusters: u64,
    ) -> Result<Vec<Freed>, Stop> {
        let first = self.geometry.cluster_of(host).0;
        let mut free = Vec::new();
        for cluster in (first..first + clusters).map(ClusterIndex) {
            if self.dereference(cluster)? == 0 {
                free.push(Freed::new(self.geometry.offset_of(cluster), 1));
            }
        }
        Ok(free)
    }

    /// The entries of an L2 table without subclusters that read as zeroes by their flag: where each is, and the cluster
    /// it keeps.
    pub(crate) fn zero_entries(
        &mut self,
        table: HostOffset,
    ) -> Result<Vec<(u64, Option<HostOffset>)>, Stop> {
        let mut zeroes = Vec::new();
        for index in 0..self.geometry.l2_entries() {
            let slot = table.0 + index * self.geometry.l2_entry_size();
            let entry = self.l2_entry(slot)?;
            if entry.word & (ZERO | COMPRESSED) != ZERO {
                continue;
            }
            let kept = match self.classify(&entry, GuestOffset(0))? {
                Cluster::Allocated { host, .. } => {
                    self.check_overlap(host, 1)?;
                    Some(host)
                }
                _ => None,
            };
            zeroes.push((slot, kept));
        }
        Ok(zeroes)
    }

    /// Whether an L2 table lists a compressed cluster.
    pub(crate) fn has_compressed(&mut self, table: HostOffset) -> Result<bool, Stop> {
        for index in 0..self.geometry.l2_entries() {
            let slot = table.0 + index * self.geometry.l2_entry_size();
            if self.l2_entry(slot)?.word & COMPRESSED != 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Replaces an entry of an L2 table that snapshots use by a cluster of data, or by none.
    pub(crate) fn replace_entry(
        &mut self,
        slot: u64,
        host: Option<HostOffset>,
    ) -> Result<(), Stop> {
        self.set(Table::L2, slot, host.map_or(0, |host| host.0))
    }

    /// Takes an L2 table out of the active L1 table.
    pub(crate) fn unlist_l2_table(&mut self, index: u64) -> Result<(), Stop> {
        self.set(Table::L1, self.l1_slot(index), 0)
    }

    /// The entries of an L1 table that is not the active one.
    pub(crate) fn snapshot_l1(&mut self, offset: u64, entries: u64) -> Result<Vec<u64>, Stop> {
        self.words(offset, entries)
    }
}
