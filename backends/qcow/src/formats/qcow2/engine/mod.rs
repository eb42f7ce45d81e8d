//! The metadata engine: guest ranges → host extents, allocation, refcounts, and the order in which all that may reach
//! the medium.
//!
//! It does no I/O. The caller runs an operation with [`Engine::attempt`]. If the operation needs a table that is not in
//! memory, it stops with [`Stop::Need`]; the caller reads the range, passes it to [`Engine::fill`], and tries again. If
//! it needs space for a new table, it stops with [`Stop::Reserve`] in the same way. Changes are written in batches:
//! [`Engine::take_batch`] returns all that is unwritten, by stages, each of which must be on the medium before the next
//! begins. Operations go on while a batch is written; what they change belongs to the next one.
//!
//! Order on the medium:
//!
//! 1. refcount blocks (and all data copied by copy-on-write, written by the driver before it reports the write as
//!    done),
//! 2. refcount table entries that point to new blocks,
//! 3. L2 entries, which use what 1 and 2 accounted for,
//! 4. L1 entries, which point to L2 tables written in 3,
//! 5. refcounts of what 3 and 4 no longer use go down, in memory, and reach the medium with some later 1. Only then is
//!    the space reused or given back to the host.

mod alloc;
mod batch;
mod discard;
mod growth;
mod map;
mod overlap;
mod pages;
mod refcount;
mod replay;
mod snapshot;
mod write;

pub(crate) use batch::MetadataBatch;
pub(crate) use discard::ClearMode;
pub(crate) use growth::Switch;
pub(crate) use map::{Piece, Where};
pub(crate) use pages::DirtyPages;
pub(crate) use write::Segment;

use std::collections::HashSet;

use crate::error::{Error, ErrorKind, Result};
use crate::formats::qcow2::journal::{Freed, Journal};
use crate::formats::qcow2::layout::address::{ClusterIndex, HostOffset};
use crate::formats::qcow2::layout::feature;
use crate::formats::qcow2::layout::geometry::Geometry;
use crate::formats::qcow2::layout::header::Header;
use crate::formats::qcow2::layout::table::Table;
use overlap::Overlap;
use pages::Pages;

/// Why an operation did not come to its end.
#[derive(Debug)]
pub(crate) enum Stop {
    /// These bytes of the file are needed first.
    Need { offset: u64, len: u64 },
    /// Space for a table is to be had first: see [`Engine::reserved`].
    Reserve { offset: u64, len: u64 },
    /// The refcount table has no room for the cluster that is to be allocated: see [`Engine::grow_refcount_table`].
    RefcountTableFull {
        /// The first cluster it has no room for.
        end: u64,
    },
    /// It failed.
    Fail(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Fail(error)
    }
}

/// How to take one change of memory back.
#[derive(Debug)]
pub(crate) enum Undo {
    Word {
        offset: u64,
        value: u64,
        dirty: Option<Table>,
    },
    Created {
        offset: u64,
        len: u64,
    },
    Hint(u64),
    Freed(usize),
    Owed(Freed),
    Settled {
        before: Freed,
        clusters: u64,
    },
    Overlap(ClusterIndex),
    Tail(Option<u64>),
}

/// At most this many clusters are remembered for which there is space.
const MAX_RESERVED: usize = 4096;

/// The state of one image's metadata.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) header: Header,
    geometry: Geometry,
    pages: Pages,
    overlap: Overlap,
    undo: Vec<Undo>,
    /// No cluster below this index is free.
    hint: u64,
    /// What will be free after the next batch of L1 entries.
    freed: Vec<Freed>,
    /// Where the next compressed cluster may begin, within a host cluster that is not full yet.
    tail: Option<u64>,
    /// Clusters for which the host has space, though no table is written there yet.
    reserved: HashSet<u64>,
    /// Metadata damage was found, or a sync failed: nothing may be written any more.
    stopped: Option<String>,
    writable: bool,
    /// Where changes are noted for a process to come.
    journal: Option<Journal>,
}

impl Engine {
    pub(crate) fn new(header: Header, cache_bytes: usize, writable: bool) -> Self {
        let geometry = header.geometry();
        Self {
            pages: Pages::new(geometry.cluster_size(), cache_bytes),
            overlap: Overlap::default(),
            undo: Vec::new(),
            hint: 1,
            freed: Vec::new(),
            tail: None,
            reserved: HashSet::new(),
            stopped: None,
            journal: None,
            geometry,
            header,
            writable,
        }
    }

    pub(crate) fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Runs an operation to its end or takes back all it did.
    pub(crate) fn attempt<T>(
        &mut self,
        operation: impl FnOnce(&mut Self) -> Result<T, Stop>,
    ) -> Result<T, Stop> {
        self.undo.clear();
        let done = operation(self);
        if done.is_err() {
            self.roll_back();
        }
        self.record_changes();
        for undo in &self.undo {
            if let Undo::Created { offset, .. } = undo {
                self.reserved.remove(offset);
            }
        }
        self.undo.clear();
        if done.is_ok() {
            self.pages.trim();
        }
        done
    }

    #[cfg(test)]
    pub(crate) fn cached_pages(&self) -> usize {
        self.pages.len()
    }

    /// Drops tables that are too many, after an operation that had some read.
    pub(crate) fn trim(&mut self) {
        self.pages.trim();
    }

    fn roll_back(&mut self) {
        while let Some(undo) = self.undo.pop() {
            match undo {
                Undo::Word {
                    offset,
                    value,
                    dirty,
                } => self.pages.restore(offset, value, dirty),
                Undo::Created { offset, len } => self.pages.forget(offset, len),
                Undo::Hint(hint) => self.hint = hint,
                Undo::Freed(len) => self.freed.truncate(len),
                Undo::Owed(run) => {
                    if let Some(journal) = &mut self.journal {
                        journal.forget_owed(run.number);
                    }
                }
                Undo::Settled { before, .. } => {
                    if let Some(journal) = &mut self.journal {
                        journal.restore_owed(before);
                    }
                }
                Undo::Overlap(cluster) => self.overlap.remove(cluster),
                Undo::Tail(tail) => self.tail = tail,
            }
        }
    }

    /// The host has space for a table of a cluster at `offset`.
    pub(crate) fn reserved(&mut self, offset: u64) {
        // Some are never used, because others take the clusters meanwhile.
        if self.reserved.len() >= MAX_RESERVED {
            self.reserved.clear();
        }
        self.reserved.insert(offset);
    }

    /// Whether there is space for a table at `offset`.
    pub(crate) fn is_reserved(&self, offset: u64) -> bool {
        self.reserved.contains(&offset)
    }

    /// A table may be made at `host`. Its space is had now: later, when it is written, a host without any would keep
    /// what others count upon from the medium.
    fn check_space(&self, host: HostOffset) -> Result<(), Stop> {
        match self.is_reserved(host.0) {
            true => Ok(()),
            false => Err(Stop::Reserve {
                offset: host.0,
                len: self.geometry.cluster_size(),
            }),
        }
    }

    /// A mark to be had before bytes are read that [`Stop::Need`] asked for.
    pub(crate) fn before_read(&self) -> u64 {
        self.pages.dropped()
    }

    /// Takes in what was read after `mark` was had; not if that may be older than the file.
    pub(crate) fn fill(&mut self, mark: u64, offset: u64, bytes: &[u8]) {
        if mark == self.pages.dropped() {
            self.pages.fill(offset, bytes);
        }
    }

    /// Refuses to write once damage was found.
    pub(crate) fn check_usable(&self) -> Result<()> {
        if !self.writable {
            return Err(Error::new(ErrorKind::ReadOnly, "opened read-only"));
        }
        match &self.stopped {
            None => Ok(()),
            Some(why) => Err(Error::new(
                ErrorKind::ReadOnly,
                format!("no longer writable: {why}"),
            )),
        }
    }

    /// No write from now on; returns whether this is news.
    pub(crate) fn stop(&mut self, why: impl Into<String>) -> bool {
        let news = self.stopped.is_none();
        if news {
            self.stopped = Some(why.into());
        }
        news
    }

    /// The image was repaired: it may be written again, from what is on the medium now.
    pub(crate) fn restart(&mut self, header: Header) {
        self.geometry = header.geometry();
        self.header = header;
        self.pages.clear();
        self.overlap = Overlap::default();
        self.freed.clear();
        self.tail = None;
        self.reserved.clear();
        self.hint = 1;
        self.stopped = None;
        self.journal = None;
    }

    /// Other tables were written, and all there is, is on the medium: goes on with those.
    pub(crate) fn replace_tables(&mut self, header: Header) {
        let journal = self.journal.take();
        self.restart(header);
        self.journal = journal;
        if let Some(journal) = &mut self.journal {
            journal.restart();
        }
    }

    fn external(&self) -> bool {
        self.header.incompatible & feature::EXTERNAL_DATA != 0
    }

    fn get(&self, offset: u64) -> Result<u64, Stop> {
        self.pages.get(offset)
    }

    fn set(&mut self, table: Table, offset: u64, value: u64) -> Result<(), Stop> {
        self.pages.set(table, offset, value, &mut self.undo)
    }

    fn set_hint(&mut self, hint: u64) {
        if hint != self.hint {
            self.undo.push(Undo::Hint(self.hint));
            self.hint = hint;
        }
    }

    fn set_tail(&mut self, tail: Option<u64>) {
        self.undo.push(Undo::Tail(self.tail));
        self.tail = tail;
    }

    /// The use of these clusters ends with the next batches.
    fn free_later(&mut self, host: HostOffset, clusters: u64) {
        // A change of the last element could not be undone by truncating, so runs are joined only when they are
        // applied.
        self.undo.push(Undo::Freed(self.freed.len()));
        let run = self.owe(host, clusters);
        self.freed.push(run);
    }

    /// These clusters have a reference that no table will have, unless [`Engine::settle_owed`] says so.
    fn owe(&mut self, host: HostOffset, clusters: u64) -> Freed {
        let Some(journal) = &mut self.journal else {
            return Freed::new(host, clusters);
        };
        let run = journal.owe(host, clusters);
        self.undo.push(Undo::Owed(run));
        run
    }

    /// The first clusters of the run have as many references as tables have.
    fn settle_owed(&mut self, run: Freed, clusters: u64) {
        let size = self.geometry.cluster_size();
        if let Some(journal) = &mut self.journal
            && let Some(before) = journal.settle_owed(run.number, clusters, size)
        {
            self.undo.push(Undo::Settled { before, clusters });
        }
    }

    fn mark_metadata(&mut self, cluster: ClusterIndex) {
        if self.overlap.insert(cluster) {
            self.undo.push(Undo::Overlap(cluster));
        }
    }
}
