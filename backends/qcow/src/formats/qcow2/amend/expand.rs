//! Expanding zero clusters, which version 2 has not: on the disk and in every snapshot.

use std::collections::BTreeSet;
use std::path::Path;

use crate::error::{Error, Result};
use crate::formats::backing_disk::BackingDisk;
use crate::formats::qcow2::Qcow2;
use crate::formats::qcow2::engine::{ClearMode, Engine, Piece, Where};
use crate::formats::qcow2::layout::address::{GuestOffset, HostOffset};

/// How many entries of L1 tables have been looked through, of how many.
pub(crate) type Report<'a> = &'a mut dyn FnMut(u64, u64);

impl Qcow2 {
    /// What reads as zeroes by a flag becomes unallocated, or where it has a place or something below would show,
    /// clusters of zeroes.
    pub(super) fn expand_zeroes(
        &self,
        backing: Option<&dyn BackingDisk>,
        report: Report<'_>,
    ) -> Result<()> {
        let geometry = *self.engine_exclusive().geometry();
        for snapshot in &*self.snapshot_list() {
            snapshot.check(&geometry)?;
        }
        let active = u64::from(self.engine_exclusive().header.l1_size);
        let kept: u64 = self
            .snapshot_list()
            .iter()
            .map(|snapshot| u64::from(snapshot.l1_size))
            .sum();
        let total = active + kept;
        self.expand_in_snapshots(&mut |done| report(done, total))?;
        let (size, span) = (self.size(), self.engine_exclusive().l2_end(GuestOffset(0)));
        let backed = self.references().backing.is_some();
        let cluster_end = size.next_multiple_of(self.cluster_size);
        for index in 0..active {
            let start = index.saturating_mul(span);
            let end = start.saturating_add(span);
            self.expand_range(backing, backed, start.min(size), end.min(size))?;
            // What a shrink left behind the end: if the disk grows again, it must be possible to read it.
            self.expand_range(backing, false, start.max(cluster_end), end)?;
            report(kept + index + 1, total);
        }
        Ok(())
    }

    fn expand_range(
        &self,
        backing: Option<&dyn BackingDisk>,
        backed: bool,
        start: u64,
        end: u64,
    ) -> Result<()> {
        let mut at = start;
        while at < end {
            let extent = self.map(at, end - at, Path::new(""))?;
            if extent.zero && extent.present && !extent.data {
                if backed {
                    self.write_zero_clusters(backing, at, at + extent.length)?;
                } else if extent.offset.is_some() {
                    self.zero_in_place(backing, at, extent.length)?;
                } else {
                    self.unallocate(at, extent.length)?;
                }
            }
            at += extent.length;
        }
        Ok(())
    }

    /// What has a place keeps it: it may have been reserved on purpose.
    fn zero_in_place(&self, backing: Option<&dyn BackingDisk>, start: u64, len: u64) -> Result<()> {
        let end = (start + len).next_multiple_of(self.cluster_size);
        self.run(|engine| engine.own_l2_table(GuestOffset(start)))?;
        let pieces = self.run(|engine| engine.map(GuestOffset(start), end - start))?;
        let shared = |piece: &Piece| !piece.copied;
        if self.external || pieces.iter().any(shared) {
            return self.write_zero_clusters(backing, start, start + len);
        }
        let failed = |error| Error::io("cannot write zeroes", error);
        for piece in &pieces {
            if let Where::Zero(Some(host)) = piece.place {
                self.run(|engine| Ok(engine.check_overlap(host, piece.len)?))?;
                self.storage
                    .write_zeroes(host.0, piece.len, false)
                    .map_err(failed)?;
            }
        }
        // Before the tables say that it is what the disk holds.
        self.storage.sync().map_err(failed)?;
        let mut at = start;
        while at < end {
            (at, _) = self.run(|engine| engine.preallocate(GuestOffset(at), end - at, false))?;
        }
        Ok(())
    }

    /// Writes zeroes as data, also where the disk reads as zeroes already.
    fn write_zero_clusters(
        &self,
        backing: Option<&dyn BackingDisk>,
        start: u64,
        end: u64,
    ) -> Result<()> {
        let zeroes = vec![0u8; (end - start).min(1 << 20) as usize];
        let mut at = start;
        while at < end {
            let len = (end - at).min(zeroes.len() as u64) as usize;
            self.write(backing, at, &zeroes.get(..len).unwrap_or_default(), len)?;
            at += len as u64;
        }
        Ok(())
    }

    fn unallocate(&self, start: u64, len: u64) -> Result<()> {
        let end = (start + len).next_multiple_of(self.cluster_size);
        let mut at = start;
        while at < end {
            at = self.run(|engine| {
                engine.clear_range(GuestOffset(at), end - at, ClearMode::Unallocate, true)
            })?;
        }
        Ok(())
    }

    /// In the tables that snapshots use, in place: whoever shares one reads the same from it afterwards.
    fn expand_in_snapshots(&self, report: &mut dyn FnMut(u64)) -> Result<()> {
        let snapshots = self.snapshot_list().clone();
        if snapshots.is_empty() {
            return Ok(());
        }
        let _guard = self.ranges.exclusive(0..u64::MAX);
        let mut engine = self.engine_exclusive();
        self.guarded(&mut engine, |engine| {
            let (mut seen, mut done) = (BTreeSet::new(), 0);
            for snapshot in &snapshots {
                let entries = u64::from(snapshot.l1_size);
                let l1 = self.run_locked(engine, |engine| {
                    engine.snapshot_l1(snapshot.l1_offset, entries)
                })?;
                let mut tables = engine.l2_tables(&l1)?.into_iter().peekable();
                for index in 0..entries {
                    if let Some((_, table)) = tables.next_if(|(at, _)| *at == index)
                        && seen.insert(table.0)
                    {
                        self.expand_table(engine, table)?;
                    }
                    done += 1;
                    report(done);
                }
            }
            Ok(())
        })
    }

    fn expand_table(&self, engine: &mut Engine, table: HostOffset) -> Result<()> {
        let zeroes = self.run_locked(engine, |engine| engine.zero_entries(table))?;
        if zeroes.is_empty() {
            return Ok(());
        }
        let geometry = *engine.geometry();
        let uses = self.run_locked(engine, |engine| engine.refcount(geometry.cluster_of(table)))?;
        let backed = engine.header.backing.is_some();
        let mut places = Vec::with_capacity(zeroes.len());
        for _ in &zeroes {
            places.push(match backed {
                true => Some(self.shared_zero_cluster(engine, uses)?),
                false => None,
            });
        }
        // What the entries lead to before the entries.
        self.commit(engine, true)?;
        self.storage
            .sync()
            .map_err(|error| Error::io("flush error", error))?;
        for ((slot, _), place) in zeroes.iter().zip(&places) {
            self.run_locked(engine, |engine| engine.replace_entry(*slot, *place))?;
        }
        self.commit(engine, true)?;
        for host in zeroes.iter().filter_map(|(_, kept)| *kept) {
            for _ in 0..uses {
                let free = self.run_locked(engine, |engine| engine.dereference_run(host, 1))?;
                self.give_back(engine, &free);
            }
        }
        Ok(())
    }

    /// A cluster of zeroes that so many trees lead to.
    fn shared_zero_cluster(&self, engine: &mut Engine, uses: u64) -> Result<HostOffset> {
        let host = self.run_locked(engine, |engine| engine.allocate_exactly(1))?;
        let cluster = engine.geometry().cluster_of(host);
        self.run_locked(engine, |engine| engine.set_refcount(cluster, uses.max(1)))?;
        self.storage
            .write_zeroes(host.0, self.cluster_size, true)
            .map_err(|error| Error::io("cannot write zeroes", error))?;
        Ok(host)
    }
}
