//! Zeroing, discarding and unallocating whole clusters and subclusters.

use crate::error::Error;
use crate::formats::qcow2::engine::{Engine, Stop};
use crate::formats::qcow2::layout::address::GuestOffset;
use crate::formats::qcow2::layout::l2::{Cluster, L2Entry};

/// How a range is cleared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClearMode {
    /// It reads as zeroes and keeps its clusters.
    Zero,
    /// It reads as zeroes and its clusters are freed.
    ZeroAndFree,
    /// Its clusters are freed and it reads as zeroes; version 2 over a backing file has no zero clusters and leaves it
    /// as it is.
    Discard,
    /// This image holds it no more: the backing file shows.
    Unallocate,
}

impl Engine {
    /// Clears the beginning of a range, whose start and end are aligned to subclusters, or are the end of the disk;
    /// for all modes but zeroing, aligned to clusters. Returns the guest offset up to which it is cleared.
    ///
    /// `backed`: the backing file shows where nothing is allocated.
    ///
    /// # Errors
    /// `Stop::Fail` with `Unsupported` if a zero cluster cannot be expressed here; zeroes must be written instead.
    pub(crate) fn clear_range(
        &mut self,
        guest: GuestOffset,
        len: u64,
        mode: ClearMode,
        backed: bool,
    ) -> Result<u64, Stop> {
        self.check_usable()?;
        let span = self.geometry.l2_span();
        let end = (guest.0 + len).min((guest.0 / span + 1).saturating_mul(span));
        let is_zero = matches!(mode, ClearMode::Zero | ClearMode::ZeroAndFree);
        if self.geometry.version < 3 && backed {
            match mode {
                ClearMode::Zero | ClearMode::ZeroAndFree => {
                    return Err(Error::unsupported("version 2 has no zero clusters").into());
                }
                ClearMode::Discard => return Ok(guest.0 + len),
                ClearMode::Unallocate => {}
            }
        }
        let needs_entries =
            (is_zero && self.geometry.version >= 3) || (mode == ClearMode::Discard && backed);
        if !needs_entries && self.l2_table(guest)?.is_none() {
            return Ok(end);
        }
        let table = self.writable_l2_table(guest)?;
        let mut at = guest.0;
        while at < end {
            let base = self.geometry.align_down(at);
            let next = (base + self.geometry.cluster_size()).min(end);
            let slot = self.l2_slot(table, GuestOffset(at));
            let old = self.l2_entry(slot)?;
            let state = self.classify(&old, GuestOffset(base))?;
            let whole = at == base
                && (next - base == self.geometry.cluster_size() || next >= self.header.size);
            let new = if whole {
                self.cleared(&old, &state, mode, backed)
            } else {
                self.partly_zeroed(&old, &state, at, next)?
            };
            if new != old {
                self.set_l2_entry(slot, new)?;
                if new.word & crate::formats::qcow2::layout::geometry::OFFSET_MASK == 0
                    && let Some(freed) = self.space_of(&state)?
                {
                    self.free_later(freed.host, freed.clusters);
                }
            }
            at = next;
        }
        Ok(end)
    }

    /// The new entry of a cluster that is cleared as a whole.
    fn cleared(&self, old: &L2Entry, state: &Cluster, mode: ClearMode, backed: bool) -> L2Entry {
        let v3 = self.geometry.version >= 3;
        let zero = L2Entry::zero(&self.geometry);
        match mode {
            ClearMode::Zero if !v3 => L2Entry::default(),
            ClearMode::Zero => match state {
                Cluster::Allocated { .. } => old.zeroed(&self.geometry),
                _ => zero,
            },
            ClearMode::ZeroAndFree if v3 => zero,
            ClearMode::Discard if v3 => {
                let untouched = *state == Cluster::Unallocated && old.bitmap == 0;
                if untouched && !backed { *old } else { zero }
            }
            ClearMode::ZeroAndFree | ClearMode::Discard | ClearMode::Unallocate => {
                L2Entry::default()
            }
        }
    }

    /// The entry of a cluster of which some subclusters are to read as zeroes.
    fn partly_zeroed(
        &self,
        old: &L2Entry,
        state: &Cluster,
        start: u64,
        end: u64,
    ) -> Result<L2Entry, Stop> {
        if !self.geometry.extended_l2 || matches!(state, Cluster::Compressed { .. }) {
            return Err(
                Error::unsupported("only whole clusters can be marked as zeroes here").into(),
            );
        }
        let base = self.geometry.align_down(start);
        let step = self.geometry.subcluster_size();
        let (first, last) = ((start - base) / step, (end - base).div_ceil(step));
        let mask = (((1u128 << last) - 1) as u64) & !((1u64 << first) - 1);
        Ok(L2Entry {
            word: old.word,
            bitmap: (old.bitmap | mask << 32) & !mask,
        })
    }
}
