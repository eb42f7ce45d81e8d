//! Checking an image, and repairing it.
//!
//! The check shares no code with the engine but the layout of entries: it reads the tables from the file, counts how
//! often each cluster is used, and compares that with the refcounts. Nothing else may use the image meanwhile. What it
//! finds, how it counts and words that, and what it repairs, are QEMU's; where it repairs more, or refuses what QEMU
//! would do, the code says so.
//!
//! Each table is read once or twice, however many snapshots lead to it, and holes of the file are not read at all, so
//! that time and memory are bounded by what the file really holds (and by [`MAX_CLUSTERS`], QEMU's own limit), not by
//! what its tables say.

mod bitmaps;
mod compare;
mod copied;
pub(super) mod counts;
mod mend;
mod rebuild;
mod snapshots;
pub(super) mod structure;
pub(super) mod tables;
mod walk;

use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::formats::qcow2::layout::address::HostOffset;
use crate::formats::qcow2::layout::geometry::Geometry;
use crate::formats::qcow2::layout::header::{Header, place};
use crate::formats::qcow2::layout::snapshot_table::Snapshot;
use crate::report::{CheckResult, Repair};
use crate::storage::Storage;
use counts::Counts;
use tables::Extents;

/// At most this many findings have a message; all are counted.
const MAX_MESSAGES: usize = 100_000;
/// Largest file that is checked, in clusters.
pub(super) const MAX_CLUSTERS: u64 = i32::MAX as u64;

/// A check in progress.
pub(crate) struct Check<'a> {
    pub(super) storage: &'a dyn Storage,
    pub(super) header: Header,
    pub(super) geometry: Geometry,
    /// The snapshot table, and its length in bytes.
    pub(super) snapshots: Vec<Snapshot>,
    pub(super) snapshot_bytes: u64,
    /// Findings in the snapshot table, which only writing it anew puts right.
    pub(super) incomplete: u64,
    pub(super) repair: Repair,
    pub(super) result: CheckResult,
    /// How often each cluster is used.
    pub(super) counts: Counts,
    /// Clusters that must not hold new tables, though nothing uses them.
    pub(super) taken: Counts,
    /// Length of the file in bytes.
    pub(super) file_len: u64,
    /// Clusters to be looked at: those of the file, and a cluster begun beyond its end.
    pub(super) clusters: u64,
    /// Tables lead to clusters beyond those, as in a file that was cut off: they are not counted, and keep their
    /// refcounts. The first of them.
    pub(super) beyond: Option<u64>,
    /// The refcount table.
    pub(super) table: Vec<u64>,
    /// The refcount structure itself is damaged: single counts cannot be put right.
    pub(super) rebuild: bool,
    /// The last cluster that is used or has a refcount.
    pub(super) highest: u64,
    /// L2 tables walked so far, and how many further entries lead to each: of all L1 tables, and of the active one.
    pub(super) walked: HashMap<u64, (u64, u64)>,
    pub(super) extents: Extents,
    /// Whether data that cannot be found any more is given up: only an explicit repair may do that.
    pub(super) gives_up_lost: bool,
    /// L2 entries to be repaired.
    pub(super) damaged: Vec<mend::Damaged>,
}

/// The outcome of a check.
pub(crate) struct Checked {
    pub(crate) result: CheckResult,
    /// The header as it is in the file now.
    pub(crate) header: Header,
    /// The snapshot table, if entries of it must be written anew, the length it had, and how many findings that puts
    /// right.
    pub(crate) incomplete: Option<(Vec<Snapshot>, u64, u64)>,
}

impl<'a> Check<'a> {
    /// Prepares a check of an image whose header was read.
    pub(crate) fn new(storage: &'a dyn Storage, header: &Header, repair: Repair) -> Result<Self> {
        let geometry = header.geometry();
        let mut check = Self {
            storage,
            header: header.clone(),
            geometry,
            snapshots: Vec::new(),
            snapshot_bytes: 0,
            incomplete: 0,
            repair,
            result: CheckResult {
                total_clusters: geometry.clusters_for(header.size / 512 * 512),
                ..CheckResult::default()
            },
            counts: Counts::default(),
            taken: Counts::default(),
            file_len: 0,
            clusters: 0,
            table: Vec::new(),
            rebuild: false,
            highest: 0,
            walked: HashMap::new(),
            extents: Extents::default(),
            damaged: Vec::new(),
            gives_up_lost: false,
            beyond: None,
        };
        check.measure()?;
        Ok(check)
    }

    /// Whether L2 entries that lead nowhere are repaired; the automatic repair of an image that was not closed must not
    /// do that.
    pub(crate) fn giving_up_lost(self, gives_up_lost: bool) -> Self {
        Self {
            gives_up_lost,
            ..self
        }
    }

    /// Finds out how long the file is, and how much of that it really holds.
    pub(super) fn measure(&mut self) -> Result<()> {
        let failed = |error| Error::io("cannot find the size", error);
        self.file_len = self.storage.len().map_err(failed)?;
        self.clusters = self.clusters.max(self.geometry.clusters_for(self.file_len));
        self.extents = Extents::new(self.storage.allocated().map_err(failed)?);
        Ok(())
    }

    /// Checks and repairs. What stops the check early is part of its result.
    pub(crate) fn run(mut self) -> Checked {
        let finished = self
            .read_snapshot_table()
            .and_then(|()| self.check_refcounts());
        if let Err(error) = finished {
            self.result.unfinished = Some(error.to_string());
        }
        self.result.corruptions += self.incomplete;
        let rewrite =
            self.repair == Repair::All && self.incomplete > 0 && self.result.unfinished.is_none();
        Checked {
            result: self.result,
            header: self.header,
            incomplete: rewrite.then_some((self.snapshots, self.snapshot_bytes, self.incomplete)),
        }
    }

    fn check_refcounts(&mut self) -> Result<()> {
        if self.clusters > MAX_CLUSTERS {
            self.result.check_errors += 1;
            return Err(Error::unsupported("File too large"));
        }
        self.read_refcount_table()?;
        self.count_everything(self.repair == Repair::All)?;
        self.mend_entries()?;
        let before = self.result.tallies();
        let mut stored = self.compare(Repair::None)?;
        if self.rebuild && self.repair == Repair::All {
            stored = self.rebuild_and_recount()?;
        } else if self.repair != Repair::None {
            if self.rebuild {
                self.report("ERROR need to rebuild refcount structures".to_owned());
                self.result.check_errors += 1;
                return Err(Error::corrupt("Input/output error"));
            }
            if self.result.leaks > 0 || self.result.corruptions > 0 {
                self.result.restore(before);
                stored = self.compare(self.repair)?;
            }
        }
        self.check_copied(&stored)?;
        if self.repair != Repair::None {
            self.clear_beyond_end()?;
            self.sync()?;
        }
        self.result.image_end_offset = (self.highest + 1) << self.geometry.cluster_bits;
        Ok(())
    }

    /// Counts the uses of all clusters.
    pub(super) fn count_everything(&mut self, fix: bool) -> Result<()> {
        self.count_all(fix)?;
        self.count_refcount_structure(fix)
    }

    fn report(&mut self, message: String) {
        if self.result.messages.len() < MAX_MESSAGES {
            self.result.messages.push(message);
        }
    }

    fn corruption(&mut self, message: String) {
        self.corruptions(1, message);
    }

    /// The same finding several times, as QEMU reports it, which walks a shared table several times.
    fn corruptions(&mut self, times: u64, message: String) {
        self.result.corruptions += times;
        for _ in 1..times.min(MAX_MESSAGES as u64) {
            self.report(message.clone());
        }
        self.report(message);
    }

    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.extents.forget();
        self.storage
            .write(offset, &bytes, 0, bytes.len())
            .map_err(|error| Error::io("cannot write metadata", error))
    }

    /// Writes the header, and makes it durable.
    pub(super) fn write_header(&mut self) -> Result<()> {
        self.extents.forget();
        place::write(self.storage, &self.header, &mut || self.sync())?;
        self.sync()
    }

    pub(super) fn sync(&self) -> Result<()> {
        self.storage
            .sync()
            .map_err(|error| Error::io("flush error", error))
    }

    /// `uses` more uses of all clusters of a range.
    pub(super) fn count(&mut self, offset: u64, len: u64, uses: u64) {
        if len == 0 || uses == 0 {
            return;
        }
        let end = offset.saturating_add(len);
        // The last cluster of the file may have been begun only.
        if end >= self.file_len.saturating_add(self.geometry.cluster_size()) {
            self.beyond.get_or_insert(offset);
            return self.corruptions(
                uses,
                format!(
                    "ERROR: counting reference for region exceeding the end of the file by one cluster or more: \
                     offset {offset:#x} size {len:#x}"
                ),
            );
        }
        let first = self.geometry.cluster_of(HostOffset(offset)).0;
        let last = self.geometry.cluster_of(HostOffset(end - 1)).0;
        self.clusters = self.clusters.max(last + 1);
        for cluster in first..=last {
            let over = self.counts.add(cluster, uses, self.geometry.refcount_max());
            if over > 0 {
                self.corruptions(
                    over,
                    format!(
                        "ERROR: overflow cluster offset={:#x}\n\
                         Use qemu-img amend to increase the refcount entry width or qemu-img convert to create a clean copy \
                         if the image cannot be opened for writing",
                        cluster << self.geometry.cluster_bits
                    ),
                );
            }
        }
    }
}
