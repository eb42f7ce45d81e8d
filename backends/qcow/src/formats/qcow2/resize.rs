//! The size of the disk, and space reserved for it.

use std::ops::Range;

use crate::error::{Error, ErrorKind, Result};
use crate::formats::backing_disk::BackingDisk;
use crate::formats::qcow2::Qcow2;
use crate::formats::qcow2::engine::{ClearMode, Engine, Piece, Where};
use crate::formats::qcow2::journal::Freed;
use crate::formats::qcow2::layout::address::{ClusterIndex, GuestOffset};
use crate::formats::qcow2::layout::geometry::MAX_L1_BYTES;
use crate::formats::qcow2::layout::header::Header;
use crate::options::Preallocation;

impl Qcow2 {
    /// Changes the size of the disk.
    pub(crate) fn resize(
        &self,
        backing: Option<&dyn BackingDisk>,
        size: u64,
        preallocation: Preallocation,
    ) -> Result<()> {
        if !size.is_multiple_of(512) {
            return Err(Error::invalid("The new size must be a multiple of 512"));
        }
        let _guard = self.ranges.exclusive(0..u64::MAX);
        let old = self.size();
        self.check_bitmaps_of(size)?;
        if size < old {
            if preallocation != Preallocation::Off {
                return Err(Error::invalid(
                    "Preallocation can't be used for shrinking an image",
                ));
            }
            return self.shrink(old, size);
        }
        let mut engine = self.engine_exclusive();
        let entries = engine.geometry().l1_entries_for(size);
        if entries * 8 > MAX_L1_BYTES {
            return Err(Error::too_large(
                "The new size is too large for the cluster size of the image",
            ));
        }
        let listed = u64::from(engine.header.l1_size) * engine.geometry().l2_span();
        if entries > u64::from(engine.header.l1_size) {
            self.grow_l1(&mut engine, entries)?;
        }
        if let Some((data, _)) = &self.data {
            data.set_len(size)
                .map_err(|error| Error::io("cannot resize the external data file", error))?;
        }
        let raw =
            engine.header.autoclear & crate::formats::qcow2::layout::feature::RAW_EXTERNAL != 0;
        let backed = engine.header.backing.is_some();
        drop(engine);
        let marked = self.zero_growth(backing, old, size, backed)?;
        // What tables list behind the old end, where nobody writes, does not become part of the disk.
        self.clear_listed(marked..listed.min(size), ClearMode::Unallocate)?;
        self.set_size(size)?;
        let preallocation = match preallocation {
            // As when it was created.
            Preallocation::Off if raw => Preallocation::Metadata,
            asked => asked,
        };
        self.preallocate_growth(backing, old, preallocation)
            .inspect_err(|_| {
                // There is no space: the disk stays as it was. The first error is the one to report.
                let _ = self.shrink(size, old);
            })
    }

    fn preallocate_growth(
        &self,
        backing: Option<&dyn BackingDisk>,
        old: u64,
        preallocation: Preallocation,
    ) -> Result<()> {
        let size = self.size();
        let (backed, subclusters) = {
            let engine = self.engine_exclusive();
            let backed = engine.header.backing.is_some();
            (backed, engine.geometry().extended_l2)
        };
        let mut start = old;
        let reserves = matches!(preallocation, Preallocation::Falloc | Preallocation::Full);
        if reserves && subclusters {
            self.reserve_cut_cluster(old, size)?;
        }
        if preallocation != Preallocation::Off && self.is_cut_cluster_empty(old, size)? {
            // What subclusters hold is still said beside their place.
            let keeps = subclusters || !backed && reserves;
            if keeps && !self.external {
                // In one piece with the rest.
                start -= old % self.cluster_size;
            } else {
                let zeroes = vec![0u8; (self.cut_cluster(old, size).end - old) as usize];
                self.write_allocating(backing, old, &&zeroes[..], zeroes.len())?;
            }
        }
        self.preallocate_unlocked(start, size, preallocation)
    }

    fn set_size(&self, size: u64) -> Result<()> {
        match self.bitmaps_before_resize()? {
            Some(bits) => self.resize_with_bitmaps(bits, size)?,
            None => {
                let mut engine = self.engine_exclusive();
                self.commit(&mut engine, true)?;
                let header = Header {
                    size,
                    ..engine.header.clone()
                };
                self.update_header(&mut engine, header)?;
            }
        }
        self.size.store(size, std::sync::atomic::Ordering::Release);
        Ok(())
    }

    /// A larger L1 table, elsewhere.
    fn grow_l1(&self, engine: &mut Engine, entries: u64) -> Result<()> {
        let clusters = engine.geometry().clusters_for(entries * 8);
        let host = self.run_locked(engine, |engine| engine.allocate_exactly(clusters))?;
        self.commit(engine, true)?;
        let mut words = self.run_locked(engine, Engine::l1_words)?;
        words.resize(entries as usize, 0);
        let header = engine.header.clone();
        let switch = engine.replace_l1(host, &words, &header);
        self.switch(engine, switch)
    }

    /// Makes what becomes part of the disk read as zeroes: the rest of the cluster that the old end cut off, which may
    /// hold anything, and what a larger backing file holds there. Returns up to where it does, whatever the tables
    /// said.
    fn zero_growth(
        &self,
        backing: Option<&dyn BackingDisk>,
        old: u64,
        new: u64,
        backed: bool,
    ) -> Result<u64> {
        let end = old.next_multiple_of(self.cluster_size).min(new);
        let step = self.engine_write().geometry().subcluster_size();
        let zeroes = if backed && !self.external {
            old.next_multiple_of(step).min(end)
        } else {
            end
        };
        self.write_zero_data(backing, old, zeroes)?;
        if zeroes < end {
            let len = end.next_multiple_of(step) - zeroes;
            self.run(|engine| engine.clear_range(GuestOffset(zeroes), len, ClearMode::Zero, true))?;
        }
        let backing_end = match backing {
            Some(backing) => backing.size().min(new),
            None if backed => new,
            None => 0,
        };
        // All of it, if a backing file shows through at all: what that may become is no part of this disk.
        let marked_end = if backing_end > old { new } else { end };
        let mut at = end;
        while at < marked_end {
            match self.run(|engine| {
                engine.clear_range(GuestOffset(at), new - at, ClearMode::ZeroAndFree, true)
            }) {
                Ok(next) => at = next,
                Err(error) if error.kind() == ErrorKind::Unsupported => {
                    // Version 2: only what must be.
                    self.write_zero_data(backing, at, backing_end.max(at))?;
                    at = marked_end;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(at)
    }

    /// Clears what tables list in a range; where there is no table nothing is to be done.
    pub(super) fn clear_listed(&self, range: Range<u64>, mode: ClearMode) -> Result<()> {
        let mut at = range.start;
        while at < range.end {
            at = self.run(|engine| {
                if engine.l2_is_absent(GuestOffset(at))? {
                    return Ok(engine.l2_end(GuestOffset(at)));
                }
                engine.clear_range(GuestOffset(at), range.end - at, mode, false)
            })?;
        }
        Ok(())
    }

    /// The clusters first, then the size: what lies beyond the new end is lost either way. Until the size changes it
    /// reads as zeroes, not as what a backing file holds there, if the image can say so.
    fn shrink(&self, old: u64, size: u64) -> Result<()> {
        if self
            .snapshots()
            .iter()
            .any(|snapshot| snapshot.disk_size.is_none())
            && !self.snapshots().is_empty()
        {
            return Err(Error::unsupported(
                "an image with snapshots of version 2 cannot be shrunk",
            ));
        }
        let cluster_end = size.next_multiple_of(self.cluster_size);
        let what = {
            let engine = self.engine_exclusive();
            match engine.header.backing.is_some() && engine.header.version >= 3 {
                true => ClearMode::ZeroAndFree,
                false => ClearMode::Unallocate,
            }
        };
        self.clear_listed(cluster_end..old.next_multiple_of(self.cluster_size), what)?;
        self.set_size(size)?;
        if let Some((data, _)) = &self.data {
            data.set_len(size)
                .map_err(|error| Error::io("cannot resize the external data file", error))?;
        }
        self.drop_tables_beyond(size)?;
        self.drop_idle_refcounts()
    }

    /// Gives back the L2 tables of what is no part of the disk any more.
    pub(super) fn drop_tables_beyond(&self, size: u64) -> Result<()> {
        let mut engine = self.engine_exclusive();
        let l1 = self.run_locked(&mut engine, Engine::l1_words)?;
        let kept = engine.geometry().l1_entries_for(size);
        let mut tables = engine.l2_tables(&l1)?;
        tables.retain(|(index, _)| *index >= kept);
        for (index, _) in &tables {
            self.run_locked(&mut engine, |engine| engine.unlist_l2_table(*index))?;
        }
        self.commit(&mut engine, true)?;
        for (_, table) in tables {
            self.free_tree(&mut engine, table)?;
        }
        Ok(())
    }

    /// Gives back refcount blocks that nothing needs any more, and the free end of the file.
    pub(super) fn drop_idle_refcounts(&self) -> Result<()> {
        let mut engine = self.engine_exclusive();
        while !engine.is_clean() {
            self.commit(&mut engine, true)?;
        }
        for (index, host) in self.run_locked(&mut engine, Engine::refcount_blocks)? {
            if !self.run_locked(&mut engine, |engine| engine.is_idle(index, host))? {
                continue;
            }
            self.run_locked(&mut engine, |engine| engine.unlist_refcount_block(index))?;
            self.commit(&mut engine, true)?;
            // If it counted itself, nothing counts it now.
            let cluster = engine.geometry().cluster_of(host);
            if self.run_locked(&mut engine, |engine| engine.refcount(cluster))? > 0 {
                self.run_locked(&mut engine, |engine| engine.dereference_run(host, 1))?;
            }
            self.give_back(&mut engine, &[Freed::new(host, 1)]);
        }
        while !engine.is_clean() {
            self.commit(&mut engine, true)?;
        }
        let mut last = ClusterIndex(0);
        for (index, host) in self
            .run_locked(&mut engine, Engine::refcount_blocks)?
            .into_iter()
            .rev()
        {
            let found = self.run_locked(&mut engine, |engine| engine.last_in_use(index, host))?;
            if let Some(found) = found {
                last = found;
                break;
            }
        }
        let end = ClusterIndex(last.0 + 1);
        if let Err(error) = engine.check_end(end) {
            self.signal_corruption(&mut engine, &error);
            return Err(error);
        }
        let end = engine.geometry().offset_of(end).0;
        let failed = |error| Error::io("cannot cut off the free end of the image", error);
        if end < self.storage.len().map_err(failed)? {
            self.set_len(end).map_err(failed)?;
        }
        Ok(())
    }

    /// The cluster that the old end of the disk cut off, as far as it is part of the new one.
    fn cut_cluster(&self, old: u64, size: u64) -> Range<u64> {
        let start = old - old % self.cluster_size;
        start..(start + self.cluster_size).min(size)
    }

    /// Whether the old end of the disk cut off a cluster in which nothing is stored.
    fn is_cut_cluster_empty(&self, old: u64, size: u64) -> Result<bool> {
        let cut = self.cut_cluster(old, size);
        if cut.start == old {
            return Ok(false);
        }
        let pieces = self.run(|engine| engine.map(GuestOffset(cut.start), cut.end - cut.start))?;
        let empty = |piece: &Piece| matches!(piece.place, Where::Unallocated | Where::Zero(None));
        Ok(pieces.iter().all(empty))
    }

    /// Reserves what the cluster that the old end cut off has a place for and the host perhaps no space yet.
    fn reserve_cut_cluster(&self, old: u64, size: u64) -> Result<()> {
        let cut = self.cut_cluster(old, size);
        if self.external || cut.start == old {
            return Ok(());
        }
        let pieces = self.run(|engine| engine.map(GuestOffset(old), cut.end - old))?;
        for piece in pieces {
            let place = match piece.place {
                Where::Data(host) | Where::Zero(Some(host)) => Some(host),
                _ => piece.reserved,
            };
            if let Some(host) = place {
                self.storage
                    .allocate(host.0, piece.len)
                    .map_err(|error| Error::io("cannot preallocate", error))?;
            }
        }
        Ok(())
    }
}
