//! Space reserved for the disk before anything is written to it.

use crate::error::{Error, Result};
use crate::formats::qcow2::Qcow2;
use crate::formats::qcow2::engine::Where;
use crate::formats::qcow2::layout::address::{GuestOffset, HostOffset};
use crate::formats::raw;
use crate::options::Preallocation;
use crate::storage::Storage;

/// At most this many clusters are changed in one go.
const AT_A_TIME: u64 = 1024;

impl Qcow2 {
    /// Reserves clusters for a range of the disk.
    pub(crate) fn preallocate(
        &self,
        start: u64,
        end: u64,
        preallocation: Preallocation,
    ) -> Result<()> {
        let _guard = self
            .ranges
            .exclusive(start..end.next_multiple_of(self.cluster_size));
        self.preallocate_unlocked(start, end, preallocation)
    }

    pub(super) fn preallocate_unlocked(
        &self,
        start: u64,
        end: u64,
        preallocation: Preallocation,
    ) -> Result<()> {
        if preallocation == Preallocation::Off {
            return Ok(());
        }
        let size = self.cluster_size;
        let (disk_end, end) = (end, end.next_multiple_of(size));
        let stays_zero = preallocation == Preallocation::Metadata && !self.external;
        let mut at = start.next_multiple_of(size);
        self.check_length(end.saturating_sub(at))?;
        if matches!(preallocation, Preallocation::Falloc | Preallocation::Full)
            && self.lacks_tables(at, end)?
        {
            self.preallocate_area(at, end, preallocation)?;
            at = end;
        }
        while at < end {
            let (next, runs) =
                self.run(|engine| engine.preallocate(GuestOffset(at), end - at, stays_zero))?;
            self.reserve(&runs, preallocation)?;
            let fresh: u64 = runs.iter().map(|(_, len)| len).sum();
            if let Some((HostOffset(host), len)) = runs.last()
                && (stays_zero && next == end && fresh == next - at)
            {
                self.end_in_zeroes(host + len, end - disk_end)?;
            }
            at = next;
        }
        self.flush_all()
    }

    /// A file that may not become as long as it would is found out before it is filled with tables.
    fn check_length(&self, more: u64) -> Result<()> {
        let failed = |error| Error::io("cannot preallocate", error);
        let len = self.storage.len().map_err(failed)?;
        if self.external || more <= len {
            return Ok(());
        }
        let longer = len.saturating_add(more);
        self.set_len(longer).map_err(failed)?;
        self.set_len(len).map_err(failed)
    }

    /// Reserves the space of what was allocated, or none of it.
    fn reserve(&self, runs: &[(HostOffset, u64)], preallocation: Preallocation) -> Result<()> {
        let data = self.data.as_ref().map(|(data, _)| &**data);
        let storage: &dyn Storage = data.unwrap_or(&*self.storage);
        self.reserve_in(storage, runs, preallocation)
            .inspect_err(|_| self.give_space_back(runs))
    }

    /// The tables could not be put back as they were if there were no space left for them.
    fn give_space_back(&self, runs: &[(HostOffset, u64)]) {
        for &(HostOffset(host), len) in runs.iter().filter(|_| !self.external) {
            // The first error is the one to report.
            let _ = self.storage.discard(host, len);
        }
    }

    fn reserve_in(
        &self,
        storage: &dyn Storage,
        runs: &[(HostOffset, u64)],
        preallocation: Preallocation,
    ) -> Result<()> {
        let failed = |error| Error::io("cannot preallocate", error);
        let len_before = storage.len().map_err(failed)?;
        // First: a hole needs no space, and should there be none the tables do not lead beyond the end.
        let last = runs.iter().map(|(host, len)| host.0 + len).max();
        if let Some(last) = last.filter(|last| *last > len_before) {
            storage.set_len(last).map_err(failed)?;
        }
        let reserve = match preallocation {
            Preallocation::Metadata => Preallocation::Off,
            other => other,
        };
        for &(HostOffset(host), len) in runs {
            // Space used before may hold anything.
            if !self.external && len_before > host {
                storage.write_zeroes(host, len, true).map_err(failed)?;
            }
            self.reserve_with_tables(storage, (len_before, host + len), reserve);
            raw::preallocate(storage, host, host + len, reserve)?;
        }
        Ok(())
    }

    /// What of the last cluster lies behind the end of the disk is stored, as QEMU does it: the host reports a cluster
    /// that is all hole, and one of which that part is written, differently.
    fn end_in_zeroes(&self, cluster_end: u64, len: u64) -> Result<()> {
        if len == 0 || self.engine_write().geometry().extended_l2 {
            return Ok(());
        }
        let zeroes = vec![0u8; len as usize];
        self.storage
            .write(cluster_end - len, &&zeroes[..], 0, zeroes.len())
            .map_err(|error| Error::io("cannot preallocate", error))
    }

    /// Whether a range spans several L2 tables, and nothing in it has a place.
    fn lacks_tables(&self, start: u64, end: u64) -> Result<bool> {
        let span = self.engine_write().geometry().l2_span();
        let mut at = start;
        if self.external || end.saturating_sub(1) / span <= start / span {
            return Ok(false);
        }
        while at < end {
            let pieces = self.find(|engine| engine.map(GuestOffset(at), end - at))?;
            for piece in pieces {
                let empty = matches!(piece.place, Where::Unallocated | Where::Zero(None));
                if !empty || piece.reserved.is_some() {
                    return Ok(false);
                }
                at = piece.guest.0 + piece.len;
            }
        }
        Ok(true)
    }

    /// Reserves a range in which nothing has a place, in one piece: the refcount blocks come before it, the L2 tables,
    /// but for the first one, behind.
    fn preallocate_area(&self, start: u64, end: u64, preallocation: Preallocation) -> Result<()> {
        let clusters = (end - start) / self.cluster_size;
        self.run(|engine| engine.own_l2_table(GuestOffset(start)))?;
        let tables = clusters.div_ceil(self.engine_write().geometry().l2_entries()) + 1;
        while !self.run(|engine| engine.describe_ahead(clusters + tables))? {}
        let (mut runs, mut linked) = (Vec::new(), 0);
        self.allocate_area(clusters, &mut runs)
            .and_then(|()| self.reserve(&runs, preallocation))
            .and_then(|()| self.link_area(start, &runs, &mut linked))
            .and_then(|()| self.flush_all())
            .inspect_err(|_| {
                self.give_space_back(&runs);
                // The first error is the one to report.
                let _ = self.release_area(&runs, linked);
            })
    }

    fn allocate_area(&self, clusters: u64, runs: &mut Vec<(HostOffset, u64)>) -> Result<()> {
        let mut left = clusters;
        while left > 0 {
            let (host, count) = self.run(|engine| engine.allocate(left.min(AT_A_TIME)))?;
            let len = count * self.cluster_size;
            match runs.last_mut() {
                Some((at, before)) if at.0 + *before == host.0 => *before += len,
                _ => runs.push((host, len)),
            }
            left -= count;
        }
        Ok(())
    }

    /// Makes the tables lead to what was allocated; `linked` is set to the number of bytes they lead to.
    fn link_area(&self, start: u64, runs: &[(HostOffset, u64)], linked: &mut u64) -> Result<()> {
        for &(host, len) in runs {
            let mut done = 0;
            while done < len {
                let clusters = ((len - done) / self.cluster_size).min(AT_A_TIME);
                let (guest, host) = (GuestOffset(start + *linked), HostOffset(host.0 + done));
                let count = self.run(|engine| engine.link(guest, host, clusters))?;
                done += count * self.cluster_size;
                *linked += count * self.cluster_size;
            }
        }
        Ok(())
    }

    /// Returns what was allocated and no table leads to.
    fn release_area(&self, runs: &[(HostOffset, u64)], linked: u64) -> Result<()> {
        let mut skip = linked;
        for &(host, len) in runs {
            let mut done = skip.min(len);
            skip -= done;
            while done < len {
                let clusters = ((len - done) / self.cluster_size).min(AT_A_TIME);
                self.run(|engine| engine.release(HostOffset(host.0 + done), clusters))?;
                done += clusters * self.cluster_size;
            }
        }
        Ok(())
    }

    /// Reserves what the file did not have before, up to `end`: the tables that are not written yet in one piece with
    /// the data, so that the file system has fewer pieces to keep account of.
    fn reserve_with_tables(
        &self,
        storage: &dyn Storage,
        (len, end): (u64, u64),
        how: Preallocation,
    ) {
        if self.external || how == Preallocation::Off {
            return;
        }
        // It only saves extents; the outcome is the same without it.
        let start = len.next_multiple_of(self.cluster_size);
        if start < end {
            let _ = storage.allocate(start, end - start);
        }
    }

    fn flush_all(&self) -> Result<()> {
        let mut engine = self.engine_exclusive();
        self.commit(&mut engine, true)
    }
}
