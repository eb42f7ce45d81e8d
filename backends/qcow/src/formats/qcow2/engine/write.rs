//! Where a write goes: in place, or to new clusters with what surrounds the write copied in.

use crate::error::Error;
use crate::formats::qcow2::engine::{Engine, Piece, Stop, Where};
use crate::formats::qcow2::journal::Freed;
use crate::formats::qcow2::layout::address::{GuestOffset, HostOffset};
use crate::formats::qcow2::layout::geometry::COPIED;
use crate::formats::qcow2::layout::l2::{Cluster, L2Entry};
use crate::formats::qcow2::layout::table::Table;

/// A contiguous host range to be written: the data of the caller in `write`, and around it, up to `guest` and `guest +
/// len`, what the disk held there before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) guest: GuestOffset,
    pub(crate) len: u64,
    pub(crate) host: HostOffset,
    pub(crate) write: std::ops::Range<u64>,
}

/// An L2 entry to be set once the data is written.
#[derive(Debug)]
struct Update {
    slot: u64,
    entry: L2Entry,
    freed: Option<Freed>,
}

/// What to do for (the beginning of) a write.
#[derive(Debug, Default)]
pub(crate) struct WritePlan {
    pub(crate) segments: Vec<Segment>,
    updates: Vec<Update>,
    fresh: Vec<Freed>,
    /// Guest offset up to which the plan goes.
    pub(crate) end: u64,
}

/// At most this many clusters are planned at a time.
const MAX_CLUSTERS: u64 = 1024;

/// A cluster that a write touches: the written part of it.
struct Touched {
    base: GuestOffset,
    start: u64,
    end: u64,
    slot: u64,
}

impl Engine {
    /// If all of the range may be written in place: where it is.
    pub(crate) fn plan_in_place(
        &self,
        guest: GuestOffset,
        len: u64,
    ) -> Result<Option<Vec<Piece>>, Stop> {
        self.check_usable()?;
        let end = guest.0 + len;
        let (mut at, mut pieces) = (guest.0, Vec::new());
        while at < end {
            for piece in self.map(GuestOffset(at), end - at)? {
                let Where::Data(host) = piece.place else {
                    return Ok(None);
                };
                // A shared L2 table must not be bypassed: its entries describe a snapshot's disk, too.
                let table_is_ours = self
                    .l2_table(piece.guest)?
                    .is_some_and(|(_, copied)| copied);
                if !piece.copied || !table_is_ours {
                    return Ok(None);
                }
                self.check_overlap(host, piece.len)?;
                at = piece.guest.0 + piece.len;
                pieces.push(piece);
            }
        }
        Ok(Some(pieces))
    }

    /// Plans the beginning of a write. The caller has the range for itself until it calls
    /// [`Engine::finish_write`] or [`Engine::abandon_write`].
    pub(crate) fn plan_write(&mut self, guest: GuestOffset, len: u64) -> Result<WritePlan, Stop> {
        self.check_usable()?;
        let span = self.geometry.l2_span();
        let longest =
            self.geometry.align_down(guest.0) + MAX_CLUSTERS * self.geometry.cluster_size();
        let end = (guest.0 + len)
            .min((guest.0 / span + 1).saturating_mul(span))
            .min(longest);
        let table = self.writable_l2_table(guest)?;
        let mut plan = WritePlan {
            end,
            ..WritePlan::default()
        };
        let mut at = guest.0;
        while at < end {
            let base = self.geometry.align_down(at);
            let next = (base + self.geometry.cluster_size()).min(end);
            let slot = self.l2_slot(table, GuestOffset(at));
            let touched = Touched {
                base: GuestOffset(base),
                start: at,
                end: next,
                slot,
            };
            let entry = self.l2_entry(slot)?;
            match self.classify(&entry, touched.base)? {
                Cluster::Allocated { host, copied: true } => {
                    self.check_overlap(host, 1)?;
                    self.plan_old_cluster(&mut plan, &touched, entry, host);
                    at = next;
                }
                _ => at = self.plan_new_clusters(&mut plan, table, touched, end)?,
            }
        }
        Ok(plan)
    }

    /// A cluster that may be written in place, though parts of it may not hold data yet.
    fn plan_old_cluster(
        &self,
        plan: &mut WritePlan,
        touched: &Touched,
        entry: L2Entry,
        host: HostOffset,
    ) {
        let geometry = &self.geometry;
        let step = geometry.subcluster_size();
        let base = touched.base.0;
        let holds_data = |at: u64| {
            let index = (at - base) / step;
            if geometry.extended_l2 {
                entry.bitmap >> index & 1 == 1
            } else {
                entry.word & crate::formats::qcow2::layout::l2::ZERO == 0
            }
        };
        let first = if holds_data(touched.start) {
            touched.start
        } else {
            touched.start - (touched.start - base) % step
        };
        let last = if holds_data(touched.end - 1) {
            touched.end
        } else {
            base + (touched.end - base).next_multiple_of(step)
        };
        let new = if geometry.extended_l2 {
            let mask =
                subcluster_mask(geometry.subcluster_size(), base, touched.start, touched.end);
            L2Entry {
                word: entry.word,
                bitmap: (entry.bitmap | mask) & !(mask << 32),
            }
        } else {
            L2Entry {
                word: entry.word & !crate::formats::qcow2::layout::l2::ZERO,
                bitmap: 0,
            }
        };
        if new != entry {
            plan.updates.push(Update {
                slot: touched.slot,
                entry: new,
                freed: None,
            });
        }
        plan.add(Segment {
            guest: GuestOffset(first),
            len: last - first,
            host: HostOffset(host.0 + first - base),
            write: touched.start..touched.end,
        });
    }

    /// New clusters for as many clusters in a row as need one and find one; returns up to where.
    fn plan_new_clusters(
        &mut self,
        plan: &mut WritePlan,
        table: HostOffset,
        touched: Touched,
        end: u64,
    ) -> Result<u64, Stop> {
        let size = self.geometry.cluster_size();
        let wanted = self.count_new_clusters(table, touched.base, end)?;
        let (host, count) = if self.external() {
            (HostOffset(touched.base.0), wanted)
        } else {
            let (host, count) = self.allocate(wanted)?;
            let fresh = self.owe(host, count);
            plan.fresh.push(fresh);
            (host, count)
        };
        let mut start = touched.start;
        for index in 0..count {
            let base = GuestOffset(touched.base.0 + index * size);
            let next = (base.0 + size).min(end);
            let slot = self.l2_slot(table, base);
            let touched = Touched {
                base,
                start,
                end: next,
                slot,
            };
            self.plan_new_cluster(plan, &touched, HostOffset(host.0 + index * size))?;
            start = next;
        }
        Ok(start)
    }

    /// How many clusters from `base` on need a new cluster, up to `end`.
    fn count_new_clusters(
        &mut self,
        table: HostOffset,
        base: GuestOffset,
        end: u64,
    ) -> Result<u64, Stop> {
        let size = self.geometry.cluster_size();
        let mut count = 0;
        while base.0 + count * size < end {
            let at = GuestOffset(base.0 + count * size);
            let entry = self.l2_entry(self.l2_slot(table, at))?;
            if count > 0
                && matches!(
                    self.classify(&entry, at)?,
                    Cluster::Allocated { copied: true, .. }
                )
            {
                break;
            }
            count += 1;
        }
        Ok(count)
    }

    fn plan_new_cluster(
        &mut self,
        plan: &mut WritePlan,
        touched: &Touched,
        host: HostOffset,
    ) -> Result<(), Stop> {
        let geometry = self.geometry;
        let (size, base) = (geometry.cluster_size(), touched.base.0);
        let old = self.l2_entry(touched.slot)?;
        let state = self.classify(&old, touched.base)?;
        let freed = self.space_of(&state)?;
        let mut entry = L2Entry::data(&geometry, host);
        let (mut first, mut last) = (base, base + size);
        if geometry.extended_l2 && state == Cluster::Unallocated {
            let step = geometry.subcluster_size();
            first = touched.start - (touched.start - base) % step;
            last = base + (touched.end - base).next_multiple_of(step);
            let mask = subcluster_mask(step, base, touched.start, touched.end);
            entry.bitmap = (old.bitmap | mask) & !(mask << 32);
        }
        plan.updates.push(Update {
            slot: touched.slot,
            entry,
            freed,
        });
        plan.add(Segment {
            guest: GuestOffset(first),
            len: last - first,
            host: HostOffset(host.0 + first - base),
            write: touched.start..touched.end,
        });
        Ok(())
    }

    /// Gives the clusters of (the beginning of) a range that have none a place, without writing to it; returns up to
    /// where that went, and the host ranges. With `stays_zero`, what is marked as zeroes goes on being marked so. The
    /// caller has the range for itself.
    pub(crate) fn preallocate(
        &mut self,
        guest: GuestOffset,
        len: u64,
        stays_zero: bool,
    ) -> Result<(u64, Vec<(HostOffset, u64)>), Stop> {
        if !self.external() {
            self.keep_in_one_piece(guest, len)?;
        }
        let plan = self.plan_write(guest, len)?;
        for update in &plan.updates {
            let old = self.l2_entry(update.slot)?;
            let mut entry = update.entry;
            if self.geometry.extended_l2 {
                // The place alone is recorded: what the subclusters hold is still found below.
                entry.bitmap = old.bitmap;
            } else if stays_zero && old.word & crate::formats::qcow2::layout::l2::COMPRESSED == 0 {
                entry.word |= old.word & crate::formats::qcow2::layout::l2::ZERO;
            }
            self.set_l2_entry(update.slot, entry)?;
        }
        self.settle_fresh(&plan);
        let size = self.geometry.cluster_size();
        let runs = match self.external() {
            true => vec![(HostOffset(guest.0), plan.end - guest.0)],
            false => plan
                .fresh
                .iter()
                .map(|fresh| (fresh.host, fresh.clusters * size))
                .collect(),
        };
        Ok((plan.end, runs))
    }

    /// Makes the entries of clusters that have no place lead to `count` clusters from `host` on, as many as one L2
    /// table has; returns how many. The caller has the range for itself.
    pub(crate) fn link(
        &mut self,
        guest: GuestOffset,
        host: HostOffset,
        count: u64,
    ) -> Result<u64, Stop> {
        self.check_usable()?;
        let size = self.geometry.cluster_size();
        let table = self.writable_l2_table(guest)?;
        let count = count.min((self.l2_end(guest) - guest.0) / size);
        for index in 0..count {
            let slot = self.l2_slot(table, GuestOffset(guest.0 + index * size));
            let old = self.l2_entry(slot)?;
            let mut entry = L2Entry::data(&self.geometry, HostOffset(host.0 + index * size));
            if self.geometry.extended_l2 {
                entry.bitmap = old.bitmap;
            }
            self.set_l2_entry(slot, entry)?;
        }
        Ok(count)
    }

    /// What is preallocated is one piece for each L2 table, as far as it can be: no refcount block lies in it.
    fn keep_in_one_piece(&mut self, guest: GuestOffset, len: u64) -> Result<(), Stop> {
        self.check_usable()?;
        let table = self.writable_l2_table(guest)?;
        let base = GuestOffset(self.geometry.align_down(guest.0));
        let end = (guest.0 + len).min(self.l2_end(guest));
        // The entries are looked at only if it matters.
        if !self.next_lack_description(self.geometry.clusters_for(end - base.0))? {
            return Ok(());
        }
        let first = self.l2_entry(self.l2_slot(table, base))?;
        match self.classify(&first, base)? {
            Cluster::Allocated { copied: true, .. } => Ok(()),
            _ => {
                let count = self.count_new_clusters(table, base, end)?;
                self.describe_next(count)
            }
        }
    }

    /// Whether nothing is allocated in the part of the disk that one L2 table describes.
    pub(crate) fn l2_is_absent(&mut self, guest: GuestOffset) -> Result<bool, Stop> {
        Ok(self.l2_table(guest)?.is_none())
    }

    /// Where the part of the disk ends that one L2 table describes.
    pub(crate) fn l2_end(&self, guest: GuestOffset) -> u64 {
        let span = self.geometry.l2_span();
        (guest.0 / span + 1).saturating_mul(span)
    }

    /// The L2 table for `guest`, made or copied if it may not be changed as it is.
    pub(super) fn writable_l2_table(&mut self, guest: GuestOffset) -> Result<HostOffset, Stop> {
        let index = self.geometry.l1_index(guest);
        if index >= u64::from(self.header.l1_size) {
            return Err(Error::corrupt("the L1 table is too small for the disk").into());
        }
        let old = match self.l2_table(guest)? {
            Some((table, true)) => {
                if !self.overlap.contains(self.geometry.cluster_of(table)) {
                    return Err(Error::corrupt(format!(
                        "the L2 table at {table} is not where it was"
                    ))
                    .into());
                }
                return Ok(table);
            }
            other => other,
        };
        let size = self.geometry.cluster_size();
        let words = match old {
            None => Vec::new(),
            Some((old, _)) => self.table_words(old)?,
        };
        let (table, _) = self.allocate(1)?;
        self.check_space(table)?;
        self.pages.create(Table::L2, table.0, size, &mut self.undo);
        for (slot, word) in (table.0..).step_by(8).zip(words) {
            if word != 0 {
                self.set(Table::L2, slot, word)?;
            }
        }
        self.mark_metadata(self.geometry.cluster_of(table));
        self.set(Table::L1, self.l1_slot(index), table.0 | COPIED)?;
        if let Some((old, _)) = old {
            self.free_later(old, 1);
        }
        Ok(table)
    }

    /// Makes the L2 table for `guest`, if there is none that may be changed.
    pub(crate) fn own_l2_table(&mut self, guest: GuestOffset) -> Result<(), Stop> {
        self.writable_l2_table(guest).map(|_| ())
    }

    /// All words of the table in one cluster.
    pub(super) fn table_words(&mut self, table: HostOffset) -> Result<Vec<u64>, Stop> {
        self.words(table.0, self.geometry.cluster_size() / 8)
    }

    /// The data of the plan is written: the disk now is what the plan says.
    pub(crate) fn finish_write(&mut self, plan: &WritePlan) -> Result<(), Stop> {
        for update in &plan.updates {
            self.set_l2_entry(update.slot, update.entry)?;
            if let Some(freed) = update.freed {
                self.free_later(freed.host, freed.clusters);
            }
        }
        self.settle_fresh(plan);
        Ok(())
    }

    /// Tables have what the plan took, or it was given back.
    fn settle_fresh(&mut self, plan: &WritePlan) {
        for fresh in &plan.fresh {
            self.settle_owed(*fresh, fresh.clusters);
        }
    }

    /// The data could not be written: the clusters it was to be in are free again.
    pub(crate) fn abandon_write(&mut self, plan: &WritePlan) -> Result<(), Stop> {
        for fresh in &plan.fresh {
            self.release(fresh.host, fresh.clusters)?;
        }
        self.settle_fresh(plan);
        Ok(())
    }

    pub(super) fn set_l2_entry(&mut self, slot: u64, entry: L2Entry) -> Result<(), Stop> {
        self.set(Table::L2, slot, entry.word)?;
        if self.geometry.extended_l2 {
            self.set(Table::L2, slot + 8, entry.bitmap)?;
        }
        Ok(())
    }

    /// Makes the cluster at `guest` the compressed one of `len` bytes at `host`.
    pub(crate) fn set_compressed(
        &mut self,
        guest: GuestOffset,
        host: HostOffset,
        len: u64,
    ) -> Result<(), Stop> {
        let table = self.writable_l2_table(guest)?;
        let slot = self.l2_slot(table, guest);
        let old = self.l2_entry(slot)?;
        let state = self.classify(&old, guest)?;
        self.set_l2_entry(slot, L2Entry::compressed(&self.geometry, host, len))?;
        if let Some(freed) = self.space_of(&state)? {
            self.free_later(freed.host, freed.clusters);
        }
        Ok(())
    }
}

impl WritePlan {
    fn add(&mut self, next: Segment) {
        if let Some(last) = self.segments.last_mut()
            && last.guest.0 + last.len == next.guest.0
            && last.host.0 + last.len == next.host.0
            && last.write.end == next.guest.0
            && next.write.start == next.guest.0
        {
            last.len += next.len;
            last.write.end = next.write.end;
            return;
        }
        self.segments.push(next);
    }
}

/// The subclusters that `start..end` touches, as bits.
fn subcluster_mask(step: u64, base: u64, start: u64, end: u64) -> u64 {
    let (first, last) = ((start - base) / step, (end - base).div_ceil(step));
    (((1u128 << last) - 1) as u64) & !((1u64 << first) - 1)
}
