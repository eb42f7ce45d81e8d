//! Guest ranges → host extents.

use crate::error::{Error, Result};
use crate::formats::qcow2::engine::{Engine, Stop};
use crate::formats::qcow2::layout::address::{GuestOffset, HostOffset};
use crate::formats::qcow2::layout::geometry::HOST_LIMIT;
use crate::formats::qcow2::layout::l2::{self, Cluster, Content, L2Entry};

/// Where a piece of the disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Where {
    /// Not in this image.
    Unallocated,
    /// Reads as zeroes; space may be reserved for it.
    Zero(Option<HostOffset>),
    /// At this host offset, as it is.
    Data(HostOffset),
    /// In this compressed cluster: where it begins and how long it may be.
    Compressed { host: HostOffset, len: u64 },
}

/// A range of the disk that is in one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) guest: GuestOffset,
    pub(crate) len: u64,
    pub(crate) place: Where,
    /// The image alone uses the clusters: they may be written in place.
    pub(crate) copied: bool,
    /// Unallocated, and space is reserved for it here: a subcluster of a cluster of which others are in use.
    pub(crate) reserved: Option<HostOffset>,
}

impl Piece {
    /// Appends `next` if it goes on where this one ends.
    fn join(&mut self, next: &Self) -> bool {
        let follows = |a: HostOffset, b: HostOffset| a.0 + self.len == b.0;
        let joins = self.copied == next.copied
            && match (self.place, next.place) {
                (Where::Unallocated, Where::Unallocated) => match (self.reserved, next.reserved) {
                    (None, None) => true,
                    (Some(a), Some(b)) => follows(a, b),
                    _ => false,
                },
                (Where::Zero(None), Where::Zero(None)) => true,
                (Where::Zero(Some(a)), Where::Zero(Some(b))) | (Where::Data(a), Where::Data(b)) => {
                    follows(a, b)
                }
                _ => false,
            };
        if joins {
            self.len += next.len;
        }
        joins
    }
}

/// At most this many pieces are found at a time.
const MAX_PIECES: usize = 256;

/// When so many tables and entries have been looked at, no further table is: all of a disk may be one piece.
const MAX_LOOKS: u64 = 1 << 18;

impl Engine {
    pub(super) fn l1_slot(&self, index: u64) -> u64 {
        self.header.l1_offset + index * 8
    }

    /// The L2 table for `guest`, if there is one, and whether it may be changed in place.
    pub(super) fn l2_table(&self, guest: GuestOffset) -> Result<Option<(HostOffset, bool)>, Stop> {
        self.l2_table_by(guest, |entry| entry)
    }

    fn l2_table_by(
        &self,
        guest: GuestOffset,
        seen: impl Fn(u64) -> u64,
    ) -> Result<Option<(HostOffset, bool)>, Stop> {
        let index = self.geometry.l1_index(guest);
        if index >= u64::from(self.header.l1_size) {
            return Ok(None);
        }
        let entry = self.get(self.l1_slot(index))?;
        Ok(l2::l1_entry(&self.geometry, index, seen(entry))?)
    }

    pub(super) fn l2_slot(&self, table: HostOffset, guest: GuestOffset) -> u64 {
        table.0 + self.geometry.l2_index(guest) * self.geometry.l2_entry_size()
    }

    /// Words of an L2 entry.
    fn entry_words(&self) -> usize {
        (self.geometry.l2_entry_size() / 8) as usize
    }

    pub(super) fn l2_entry(&self, slot: u64) -> Result<L2Entry, Stop> {
        let words = self.pages.words_from(slot)?;
        let entry = words.get(..self.entry_words()).unwrap_or_default();
        Ok(L2Entry::from_words(entry))
    }

    pub(super) fn classify(&self, entry: &L2Entry, guest: GuestOffset) -> Result<Cluster> {
        entry.cluster(&self.geometry, self.external(), guest)
    }

    /// Where the beginning of `guest..guest + len` is: pieces without a gap, at least one, perhaps not reaching the
    /// end.
    pub(crate) fn map(&self, guest: GuestOffset, len: u64) -> Result<Vec<Piece>, Stop> {
        let mut pieces: Vec<Piece> = Vec::new();
        let end = guest.0.saturating_add(len).min(HOST_LIMIT << 7);
        let (mut at, mut looks) = (guest.0, 0);
        while at < end && pieces.len() < MAX_PIECES && looks < MAX_LOOKS {
            match self.map_table(GuestOffset(at), end, &mut pieces) {
                Ok((next, entries)) => {
                    at = next;
                    looks += 1 + entries;
                }
                // What has been found is of use by itself; damage is met by who asks for the rest.
                Err(Stop::Need { .. } | Stop::Fail(_)) if !pieces.is_empty() => break,
                Err(stop) => return Err(stop),
            }
        }
        if pieces.is_empty() {
            return Err(Error::invalid("an empty range has no place").into());
        }
        Ok(pieces)
    }

    /// Adds the pieces that one L2 table describes; returns where it ends, and how many entries were looked at.
    fn map_table(
        &self,
        guest: GuestOffset,
        end: u64,
        pieces: &mut Vec<Piece>,
    ) -> Result<(u64, u64), Stop> {
        let span = self.geometry.l2_span();
        let end = (guest.0 / span + 1).saturating_mul(span).min(end);
        let table = self.l2_table_by(guest, |entry| entry & !l2::L1_RESERVED)?;
        let Some((table, _)) = table else {
            add(
                pieces,
                Piece {
                    guest,
                    len: end - guest.0,
                    place: Where::Unallocated,
                    copied: false,
                    reserved: None,
                },
            );
            return Ok((end, 0));
        };
        let (mut at, mut entries) = (guest.0, 0);
        while at < end && pieces.len() < MAX_PIECES {
            let slot = self.l2_slot(table, GuestOffset(at));
            for words in self.pages.words_from(slot)?.chunks(self.entry_words()) {
                if at >= end || pieces.len() >= MAX_PIECES {
                    break;
                }
                let next = (self.geometry.align_down(at) + self.geometry.cluster_size()).min(end);
                self.add_cluster(&L2Entry::from_words(words), GuestOffset(at), next, pieces)?;
                at = next;
                entries += 1;
            }
        }
        Ok((at, entries))
    }

    fn add_cluster(
        &self,
        entry: &L2Entry,
        guest: GuestOffset,
        end: u64,
        pieces: &mut Vec<Piece>,
    ) -> Result<()> {
        let seen = entry.without_reserved();
        let is_damaged = seen != *entry;
        let cluster = self.classify(&seen, guest)?;
        let base = self.geometry.align_down(guest.0);
        let step = self.geometry.subcluster_size();
        let mut at = guest.0;
        while at < end {
            let index = (at - base) / step;
            let next = match cluster {
                Cluster::Compressed { .. } => end,
                _ => (base + (index + 1) * step).min(end),
            };
            let (host, copied) = match cluster {
                Cluster::Allocated { host, copied } => {
                    (Some(HostOffset(host.0 + at - base)), copied)
                }
                _ => (None, false),
            };
            let place = match (
                entry.content(&self.geometry, &cluster, index),
                cluster,
                host,
            ) {
                (Content::Compressed, Cluster::Compressed { host, len }, _) => {
                    Where::Compressed { host, len }
                }
                (Content::Data, _, Some(host)) => Where::Data(host),
                (Content::Zero, _, host) => Where::Zero(host),
                _ => Where::Unallocated,
            };
            // A write to what is damaged takes the way on which that is found.
            let copied = copied && place != Where::Unallocated && !is_damaged;
            add(
                pieces,
                Piece {
                    guest: GuestOffset(at),
                    len: next - at,
                    place,
                    copied,
                    reserved: host.filter(|_| place == Where::Unallocated),
                },
            );
            at = next;
        }
        Ok(())
    }
}

fn add(pieces: &mut Vec<Piece>, piece: Piece) {
    if !pieces.last_mut().is_some_and(|last| last.join(&piece)) {
        pieces.push(piece);
    }
}
