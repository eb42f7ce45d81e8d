//! Changes of tables that are not in the file yet, noted in memory that outlives the process.
//!
//! A guest that was told of a write must find it again even if the process is killed the moment after. What was written is with the
//! host's kernel then, but not the tables that lead to it: they reach the file in an order with syncs in between, which only a flush
//! pays for. So each change of a table is noted in memory that somebody keeps for the next process, which makes the same changes.
//!
//! There are two halves: one takes notes while what the other has noted is being written. A record is 4 words:
//!
//! ```text
//! 1 | table << 8, offset, old value, new value      a word of a table was changed
//! 2 | table << 8, offset, length, 0                 a table of zeroes was begun
//! 3,              host offset, clusters, 0          their last use has ended
//! ```

use crate::engine::{Freed, Table};
use crate::{Error, HostOffset, Result};

/// Memory of 64-bit words that outlives this process, and that another may have written to.
pub trait Keep: Send + Sync {
    /// How many words there are.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The word at `at`, which is less than the length.
    fn load(&self, at: usize) -> u64;

    /// Sets the word at `at`. Whoever comes next sees no store without those before it.
    fn store(&self, at: usize, word: u64);
}

/// "blkhdjr1"
const MAGIC: u64 = 0x626c_6b68_646a_7231;
const MAGIC_AT: usize = 0;
const IDENTITY_AT: usize = 1;
/// Which half takes notes.
const CURRENT_AT: usize = 3;
/// How many records each half has.
const COUNTS_AT: usize = 4;
const HEADER: usize = 8;
const RECORD: usize = 4;
/// With less, it would be full all the time.
const LEAST: usize = 1024;

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
    Freed(Freed),
}

impl Change {
    fn encode(self) -> [u64; RECORD] {
        match self {
            Self::Word {
                table,
                offset,
                old,
                new,
            } => [1 | (table as u64) << 8, offset, old, new],
            Self::Created { table, offset, len } => [2 | (table as u64) << 8, offset, len, 0],
            Self::Freed(freed) => [3, freed.host.0, freed.clusters, 0],
        }
    }

    fn decode([kind, a, b, c]: [u64; RECORD]) -> Option<Self> {
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
            3 => Some(Self::Freed(Freed {
                host: HostOffset(a),
                clusters: b,
            })),
            _ => None,
        }
    }
}

/// The notes.
pub(crate) struct Journal {
    memory: Box<dyn Keep>,
    /// Which file the notes are about.
    identity: [u64; 2],
    /// The memory holds these notes. Until then it holds those of a former process, which may still be needed.
    begun: bool,
    current: usize,
    counts: [usize; 2],
    /// Not everything that belongs to this half is noted.
    incomplete: [bool; 2],
    /// What is being written now is what the other half has.
    split: bool,
}

impl Journal {
    /// Takes over the memory, with what it has for the file of this identity: in the order in which it happened. `None` if it is too
    /// small to be of use.
    pub(crate) fn open(
        memory: Box<dyn Keep>,
        identity: [u64; 2],
    ) -> Option<(Self, Result<Vec<Change>>)> {
        if memory.len() < LEAST {
            return None;
        }
        let journal = Self {
            memory,
            identity,
            begun: false,
            current: 0,
            counts: [0; 2],
            incomplete: [false; 2],
            split: false,
        };
        let left = journal.read();
        Some((journal, left))
    }

    fn capacity(&self) -> usize {
        self.memory.len().saturating_sub(HEADER) / 2 / RECORD
    }

    fn place(&self, half: usize, record: usize) -> usize {
        HEADER + (half * self.capacity() + record) * RECORD
    }

    fn read(&self) -> Result<Vec<Change>> {
        let load = |at| self.memory.load(at);
        if load(MAGIC_AT) == 0 {
            return Ok(Vec::new());
        }
        let counts = [load(COUNTS_AT), load(COUNTS_AT + 1)];
        if counts == [0, 0] {
            return Ok(Vec::new());
        }
        let damaged = || Error::invalid("the tables that a former process left are damaged");
        let of_this = [load(IDENTITY_AT), load(IDENTITY_AT + 1)] == self.identity;
        if load(MAGIC_AT) != MAGIC || !of_this {
            return Err(Error::invalid(
                "a former process left tables of another image",
            ));
        }
        let current = usize::from(load(CURRENT_AT) & 1 == 1);
        let mut changes = Vec::new();
        for half in [1 - current, current] {
            let count = usize::try_from(*counts.get(half).unwrap_or(&0)).unwrap_or(usize::MAX);
            if count > self.capacity() {
                return Err(damaged());
            }
            for record in 0..count {
                let at = self.place(half, record);
                let words = [load(at), load(at + 1), load(at + 2), load(at + 3)];
                changes.push(Change::decode(words).ok_or_else(damaged)?);
            }
        }
        Ok(changes)
    }

    /// Begins: nothing is unwritten, and what a former process noted is not needed any more.
    pub(crate) fn begin(&mut self) {
        self.counts = [0; 2];
        self.incomplete = [false; 2];
        self.memory.store(COUNTS_AT, 0);
        self.memory.store(COUNTS_AT + 1, 0);
        self.memory.store(IDENTITY_AT, self.identity[0]);
        self.memory.store(IDENTITY_AT + 1, self.identity[1]);
        self.memory.store(CURRENT_AT, self.current as u64);
        self.memory.store(MAGIC_AT, MAGIC);
        self.begun = true;
    }

    /// Notes changes that belong together.
    pub(crate) fn note(&mut self, changes: &[Change]) {
        let half = self.current;
        let count = self.counts[half];
        let fits = count + changes.len() <= self.capacity();
        if !self.begun || self.incomplete[half] || !fits {
            self.incomplete[half] = true;
            return;
        }
        for (record, change) in (count..).zip(changes) {
            let at = self.place(half, record);
            for (at, word) in (at..).zip(change.encode()) {
                self.memory.store(at, word);
            }
        }
        self.set_count(half, count + changes.len());
    }

    fn set_count(&mut self, half: usize, count: usize) {
        self.counts[half] = count;
        if self.begun {
            self.memory.store(COUNTS_AT + half, count as u64);
        }
    }

    /// All that was noted is about to be written; what comes from now on belongs to the next time.
    pub(crate) fn cut(&mut self) {
        let other = 1 - self.current;
        self.split = self.counts[other] == 0 && !self.incomplete[other];
        if self.split {
            self.current = other;
            if self.begun {
                self.memory.store(CURRENT_AT, other as u64);
            }
        } else {
            // The time before, it could not be written: both halves have something. What comes now cannot be kept apart.
            self.incomplete[self.current] = true;
        }
    }

    /// It was written.
    pub(crate) fn written(&mut self) {
        let other = 1 - self.current;
        self.set_count(other, 0);
        self.incomplete[other] = false;
        if !self.split {
            self.set_count(self.current, 0);
        }
        if !self.begun && self.incomplete == [false; 2] {
            self.begin();
        }
    }

    /// Whether all that is unwritten is noted.
    pub(crate) fn is_complete(&self) -> bool {
        self.begun && self.incomplete == [false; 2]
    }
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journal")
            .field("counts", &self.counts)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[derive(Clone)]
    struct Memory(Arc<Vec<AtomicU64>>);

    impl Memory {
        fn new(words: usize) -> Self {
            Self(Arc::new((0..words).map(|_| AtomicU64::new(0)).collect()))
        }
    }

    impl Keep for Memory {
        fn len(&self) -> usize {
            self.0.len()
        }

        fn load(&self, at: usize) -> u64 {
            self.0[at].load(Ordering::Acquire)
        }

        fn store(&self, at: usize, word: u64) {
            self.0[at].store(word, Ordering::Release);
        }
    }

    const IDENTITY: [u64; 2] = [1, 2];

    fn word(new: u64) -> Change {
        Change::Word {
            table: Table::L2,
            offset: 0x1_0000,
            old: new - 1,
            new,
        }
    }

    fn fresh(memory: &Memory) -> Journal {
        let (mut journal, left) = Journal::open(Box::new(memory.clone()), IDENTITY).unwrap();
        assert_eq!(left.unwrap(), []);
        journal.begin();
        journal
    }

    fn left(memory: &Memory) -> Vec<Change> {
        let (_, left) = Journal::open(Box::new(memory.clone()), IDENTITY).unwrap();
        left.unwrap()
    }

    #[test]
    fn what_is_not_written_is_found_in_its_order() {
        let memory = Memory::new(LEAST);
        let mut journal = fresh(&memory);
        let freed = Change::Freed(Freed {
            host: HostOffset(0x5_0000),
            clusters: 3,
        });
        let created = Change::Created {
            table: Table::Refcounts,
            offset: 0x2_0000,
            len: 0x1_0000,
        };
        journal.note(&[word(1), freed]);
        journal.cut();
        journal.note(&[created, word(2)]);
        assert_eq!(left(&memory), [word(1), freed, created, word(2)]);

        journal.written();
        assert_eq!(left(&memory), [created, word(2)]);
        assert!(journal.is_complete());
    }

    #[test]
    fn what_could_not_be_written_stays_and_what_follows_is_known_to_be_missing() {
        let memory = Memory::new(LEAST);
        let mut journal = fresh(&memory);
        journal.note(&[word(1)]);
        journal.cut();
        journal.note(&[word(2)]);
        // Not written. The next time, all of it is to be.
        journal.cut();
        journal.note(&[word(3)]);
        assert_eq!(left(&memory), [word(1), word(2)]);
        assert!(!journal.is_complete());
        journal.written();
        assert!(!journal.is_complete());
        journal.cut();
        journal.written();
        assert!(journal.is_complete());
        assert_eq!(left(&memory), []);
    }

    #[test]
    fn a_full_half_is_incomplete_until_it_is_written() {
        let memory = Memory::new(LEAST);
        let mut journal = fresh(&memory);
        (1..200).for_each(|new| journal.note(&[word(new)]));
        assert!(!journal.is_complete());
        journal.cut();
        assert!(!journal.is_complete());
        journal.note(&[word(500)]);
        journal.written();
        assert!(journal.is_complete());
        assert_eq!(left(&memory), [word(500)]);
    }

    #[test]
    fn damaged_notes_and_those_of_another_file_are_refused() {
        let memory = Memory::new(LEAST);
        let mut journal = fresh(&memory);
        journal.note(&[word(1)]);
        let open = |identity| Journal::open(Box::new(memory.clone()), identity).unwrap().1;
        assert!(open([1, 3]).is_err());
        for (at, value) in [(COUNTS_AT, 1 << 40), (HEADER, 0x901), (MAGIC_AT, 7)] {
            let good = memory.load(at);
            memory.store(at, value);
            assert!(open(IDENTITY).is_err(), "word {at}");
            memory.store(at, good);
        }
        assert!(open(IDENTITY).is_ok());
        assert!(Journal::open(Box::new(Memory::new(8)), IDENTITY).is_none());
    }
}
