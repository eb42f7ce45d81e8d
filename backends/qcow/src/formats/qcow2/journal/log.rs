//! Records of changes of tables that are not in the image yet.
//!
//! A completed write must be found again even if the process is killed the moment after. The host's kernel has the data
//! then, but not the tables that lead to it: these are written in a certain order with syncs in between, which would be
//! too slow for each write and happens at a flush. So each change of a table is recorded in a file beside the image
//! ([`super::file`]), and the next process that opens the image makes the same changes. The journal is only for killed
//! processes; after a power cut, the image has what was flushed.
//!
//! Records are written in groups, one for each operation of the engine, into one of several parts of the file. Each
//! use of a part is an epoch. When tables are about to be written to the image, the journal continues in another part;
//! once the tables are there, a group in that part says that the earlier parts are no longer needed. Each group has a
//! checksum, so that neither an incomplete group nor one of an earlier session is taken for valid. It also says which
//! groups are needed with it, so that damage among these is not taken for a write that a kill interrupted. The last
//! group is followed by zeroes, as long as a record. Anything else there is damage, with one exception: a kill can
//! interrupt the write of the next group, but only between two pages.
//!
//! ```text
//! group:  epoch, first epoch that is needed, number << 32 | groups before it that are needed << 15 | records,
//!         checksum; then the records
//! record: 1 | table << 8, offset, old value, new value      a word of a table was changed
//!         2 | table << 8, offset, length, 0                 a table was created, filled with zeroes
//!         3, host offset, clusters, number                  these clusters have one reference more than the tables say
//!         4, number, clusters, 0                            the first clusters of run `number` no longer have it
//!         5, 0, 0, 0                                        further changes of this epoch are not recorded
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{JournalContents, JournalWriter};
use crate::formats::qcow2::layout::address::HostOffset;
use crate::formats::qcow2::layout::table::Table;

/// Offset of the first part; the file's header comes before.
pub(crate) const PARTS_AT: u64 = 4096;
pub(crate) const PART: usize = 512 << 10;
/// While an image is in use, at most three parts are; the fourth is for the process that takes over from a killed one.
pub(crate) const PARTS: usize = 4;
const SERVED_PARTS: usize = 3;

pub(super) const RECORD: usize = 32;
/// The number of bits for a group's count of records. The bits from here to the group's number are enough for the
/// count of all groups.
pub(super) const NEEDED_AT: u32 = 15;
/// Bytes reserved at the end of a part: for the group that says that changes are not recorded, for one that ends the
/// need for other parts, and for the zeroes behind.
const RESERVE: usize = 4 * RECORD;
/// The most bytes of tables created within a part, all of which the next process has in memory.
const MAX_CREATED: u64 = 64 << 20;

/// A run of host clusters whose last reference is about to be removed from the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Freed {
    pub(crate) host: HostOffset,
    pub(crate) clusters: u64,
    /// Its number in the journal; 0 without a journal.
    pub(crate) number: u64,
}

impl Freed {
    pub(crate) fn new(host: HostOffset, clusters: u64) -> Self {
        Self {
            host,
            clusters,
            number: 0,
        }
    }
}

/// A change of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Word {
        table: Table,
        offset: u64,
        old: u64,
        new: u64,
    },
    Created {
        table: Table,
        offset: u64,
        len: u64,
    },
    /// These clusters have one reference more than the tables will show: they were just allocated, or are freed when
    /// tables are written.
    Owed(Freed),
    Settled {
        number: u64,
        clusters: u64,
    },
    Gap,
}

impl Change {
    fn encode(self) -> [u64; 4] {
        match self {
            Self::Word {
                table,
                offset,
                old,
                new,
            } => [1 | (table as u64) << 8, offset, old, new],
            Self::Created { table, offset, len } => [2 | (table as u64) << 8, offset, len, 0],
            Self::Owed(run) => [3, run.host.0, run.clusters, run.number],
            Self::Settled { number, clusters } => [4, number, clusters, 0],
            Self::Gap => [5, 0, 0, 0],
        }
    }

    pub(super) fn decode([kind, a, b, c]: [u64; 4]) -> Option<Self> {
        let table = || Table::ALL.get(usize::try_from(kind >> 8).ok()?).copied();
        match kind & 0xff {
            1 => Some(Self::Word {
                table: table()?,
                offset: a,
                old: b,
                new: c,
            }),
            2 => Some(Self::Created {
                table: table()?,
                offset: a,
                len: b,
            }),
            3 => Some(Self::Owed(Freed {
                host: HostOffset(a),
                clusters: b,
                number: c,
            })),
            4 => Some(Self::Settled {
                number: a,
                clusters: b,
            }),
            5 => Some(Self::Gap),
            _ => None,
        }
    }
}

/// Shows whether a group was written completely. It is not cryptographic.
pub(crate) fn checksum<'a>(session: u64, words: impl IntoIterator<Item = &'a u64>) -> u64 {
    let start = session ^ 0xcbf2_9ce4_8422_2325;
    words.into_iter().fold(start, |sum, word| {
        (sum ^ word)
            .wrapping_mul(0x0000_0100_0000_01b3)
            .rotate_left(23)
    })
}

pub(crate) fn words_of(bytes: &[u8]) -> Vec<u64> {
    let word = |chunk: &[u8]| chunk.try_into().map_or(0, u64::from_le_bytes);
    bytes.chunks_exact(8).map(word).collect()
}

/// What is recorded, and where the next group goes.
pub(crate) struct Journal {
    writer: Arc<JournalWriter>,
    /// The epoch of the part that records go to.
    epoch: u64,
    /// The epochs of the parts whose content is needed.
    parts: [Option<u64>; PARTS],
    part: usize,
    /// Bytes in the part, and the size of the tables created in it.
    used: usize,
    created: u64,
    /// The number of the next group, and of the first one in the part.
    number: u64,
    first: u64,
    /// The first epoch that is needed, and the number of its first group.
    base: u64,
    base_number: u64,
    /// Epochs with changes that are not recorded.
    incomplete: Vec<u64>,
    /// The epochs of the batch that is being written to the image.
    in_writeback: Vec<u64>,
    owed: BTreeMap<u64, Freed>,
    next: u64,
}

impl Journal {
    /// A new journal, in a file whose content is not needed.
    pub(crate) fn new(writer: Arc<JournalWriter>) -> Self {
        let mut journal = Self::after(writer, [None; PARTS], (0, 0));
        // A journal without any group would count as damaged.
        journal.written();
        journal
    }

    fn after(
        writer: Arc<JournalWriter>,
        parts: [Option<u64>; PARTS],
        (last, number): (u64, u64),
    ) -> Self {
        let mut journal = Self {
            writer,
            epoch: last,
            parts,
            part: 0,
            used: PART,
            created: 0,
            number,
            first: number,
            base: 0,
            base_number: number,
            incomplete: Vec::new(),
            in_writeback: Vec::new(),
            owed: BTreeMap::new(),
            next: 1,
        };
        journal.begin_part(PARTS);
        journal
    }

    /// Continues the journal of a killed process. All its changes are in the image now, except the clusters it owed.
    pub(crate) fn resume(writer: Arc<JournalWriter>, left: &JournalContents) -> Self {
        let mut journal = Self::after(writer, left.parts, (left.last_epoch, left.groups));
        journal.owed = left.owed.iter().map(|run| (run.number, *run)).collect();
        journal.next = journal
            .owed
            .keys()
            .last()
            .map_or(1, |last| last.saturating_add(1));
        journal.in_writeback = left.parts.iter().flatten().copied().collect();
        journal.written();
        journal
    }

    /// Continues in a free part, if fewer than `most` are in use. Returns whether it does.
    fn begin_part(&mut self, most: usize) -> bool {
        let free = self.parts.iter().position(Option::is_none);
        let in_use = self.parts.iter().flatten().count();
        let Some(part) = free.filter(|_| in_use < most) else {
            return false;
        };
        self.epoch += 1;
        self.part = part;
        (self.used, self.created, self.first) = (0, 0, self.number);
        if let Some(epoch) = self.parts.get_mut(part) {
            *epoch = Some(self.epoch);
        }
        true
    }

    /// Records changes that belong together.
    pub(crate) fn note(&mut self, changes: &[Change]) {
        if changes.is_empty() || self.incomplete.contains(&self.epoch) {
            return;
        }
        self.created += changes.iter().map(created_by).sum::<u64>();
        if self.used + RECORD * (1 + changes.len()) + RESERVE > PART || self.created > MAX_CREATED {
            self.incomplete.push(self.epoch);
            return self.write_group(&[Change::Gap]);
        }
        self.write_group(changes);
    }

    fn write_group(&mut self, changes: &[Change]) {
        let needed = self.number - self.base_number;
        let place = self.number << 32 | needed << NEEDED_AT | changes.len() as u64;
        let mut words = vec![self.epoch, self.base, place, 0];
        words.extend(changes.iter().flat_map(|change| change.encode()));
        let sum = checksum(self.writer.session(), &words);
        if let Some(place) = words.get_mut(3) {
            *place = sum;
        }
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let at = PARTS_AT + (self.part * PART + self.used) as u64;
        self.writer.add(at, &bytes);
        self.used += bytes.len();
        self.number += 1;
    }

    /// A batch with all recorded changes is about to be written to the image; later changes belong to the next batch.
    pub(crate) fn batch_taken(&mut self) {
        self.in_writeback = self.parts.iter().flatten().copied().collect();
        if !self.begin_part(SERVED_PARTS) && !self.incomplete.contains(&self.epoch) {
            // Several batches failed, and no part is free: later changes cannot be kept apart.
            self.incomplete.push(self.epoch);
            self.write_group(&[Change::Gap]);
        }
    }

    /// The batch was written. What is owed is recorded once more, because the part with its records is free now.
    pub(crate) fn written(&mut self) {
        for part in &mut self.parts {
            *part = part.filter(|epoch| !self.in_writeback.contains(epoch));
        }
        self.incomplete
            .retain(|epoch| !self.in_writeback.contains(epoch));
        if std::mem::take(&mut self.in_writeback).contains(&self.epoch) {
            // Another part must say that this one is not needed before this one is overwritten.
            let kept = self.part;
            if let Some(part) = self.parts.get_mut(kept) {
                *part = Some(self.epoch);
            }
            self.begin_part(PARTS);
            if let Some(part) = self.parts.get_mut(kept) {
                *part = None;
            }
        }
        (self.base, self.base_number) = (self.epoch, self.first);
        let room = (PART - self.used).saturating_sub(RECORD + RESERVE) / RECORD;
        let owed: Vec<Change> = self.owed.values().copied().map(Change::Owed).collect();
        self.write_group(owed.get(..room.min(owed.len())).unwrap_or_default());
    }

    /// To be called when the image has new tables, and all changes are in it.
    pub(crate) fn restart(&mut self) {
        self.owed.clear();
        self.in_writeback = self.parts.iter().flatten().copied().collect();
        self.written();
    }

    /// Whether all unwritten changes are in the journal's file.
    pub(crate) fn is_complete(&self) -> bool {
        self.incomplete.is_empty() && self.writer.is_all_there()
    }

    /// Whether some changes are not in the journal, and will not be before the next batch.
    pub(crate) fn is_full(&self) -> bool {
        !self.incomplete.is_empty() || !self.writer.is_whole()
    }

    /// Each of these clusters has a reference that no table has.
    pub(crate) fn owe(&mut self, host: HostOffset, clusters: u64) -> Freed {
        let run = Freed {
            host,
            clusters,
            number: self.next,
        };
        self.next += 1;
        self.owed.insert(run.number, run);
        run
    }

    /// Undoes [`Self::owe`]; returns the run.
    pub(crate) fn forget_owed(&mut self, number: u64) -> Option<Freed> {
        self.owed.remove(&number)
    }

    pub(crate) fn restore_owed(&mut self, run: Freed) {
        self.owed.insert(run.number, run);
    }

    /// To be called when the refcounts of the first clusters of a run are what the tables say. Returns the former run.
    pub(crate) fn settle_owed(&mut self, number: u64, clusters: u64, size: u64) -> Option<Freed> {
        let before = self.owed.remove(&number)?;
        if let Some(rest) = without_first(before, clusters, size) {
            self.owed.insert(number, rest);
        }
        Some(before)
    }
}

fn created_by(change: &Change) -> u64 {
    match change {
        Change::Created { len, .. } => *len,
        _ => 0,
    }
}

pub(super) fn without_first(run: Freed, clusters: u64, size: u64) -> Option<Freed> {
    let left = run
        .clusters
        .checked_sub(clusters)
        .filter(|left| *left > 0)?;
    Some(Freed {
        host: HostOffset(run.host.0.saturating_add(clusters.saturating_mul(size))),
        clusters: left,
        number: run.number,
    })
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journal")
            .field("parts", &self.parts)
            .finish_non_exhaustive()
    }
}
