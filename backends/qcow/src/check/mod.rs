//! Checking an image, and repairing it.
//!
//! The check shares no code with the engine but the layout of entries: it reads the tables from the file, counts how often
//! each cluster is used, and compares that with the refcounts. Nothing else may use the image meanwhile.

mod compare;
mod copied;
mod counts;
mod rebuild;
mod walk;
mod width;

use crate::address::HostOffset;
use crate::error::{Error, Result};
use crate::geometry::Geometry;
use crate::header::Header;
use crate::report::{CheckResult, Repair};
use crate::snapshot_table::Snapshot;
use crate::storage::Storage;
use counts::Counts;

/// At most this many findings are told in words; all are counted.
const MAX_MESSAGES: usize = 10_000;

/// A check in progress.
pub(crate) struct Check<'a> {
    storage: &'a dyn Storage,
    header: Header,
    geometry: Geometry,
    snapshots: &'a [Snapshot],
    repair: Repair,
    result: CheckResult,
    /// How often each cluster is used.
    counts: Counts,
    /// Length of the file in clusters, rounded up.
    file_clusters: u64,
    /// The refcount structure itself is damaged: single counts cannot be put right.
    rebuild: bool,
    /// Corruptions outside the refcount structure.
    unfixable: u64,
    /// L1 tables followed so far, and how often each L2 table was.
    trees: u64,
    walked: Counts,
    extra_walks: u64,
}

impl<'a> Check<'a> {
    /// Prepares a check of an image whose header was read.
    pub(crate) fn new(
        storage: &'a dyn Storage,
        header: &Header,
        snapshots: &'a [Snapshot],
        repair: Repair,
    ) -> Result<Self> {
        let geometry = header.geometry();
        let len = storage
            .len()
            .map_err(|error| Error::io("cannot find the size", error))?;
        Ok(Self {
            storage,
            header: header.clone(),
            geometry,
            snapshots,
            repair,
            result: CheckResult {
                total_clusters: geometry.clusters_for(header.size),
                ..CheckResult::default()
            },
            counts: Counts::default(),
            file_clusters: geometry.clusters_for(len),
            rebuild: false,
            unfixable: 0,
            trees: 0,
            walked: Counts::default(),
            extra_walks: 0,
        })
    }

    /// Checks and repairs; returns what was found, and the header as it is now.
    pub(crate) fn run(mut self) -> Result<(CheckResult, Header)> {
        self.count_all()?;
        let table = self.read_refcount_table();
        self.count_refcount_structure(&table)?;
        let mut counted = self.compare(&table)?;
        if self.rebuild && self.repair == Repair::All {
            self.rebuild_refcounts()?;
            counted = counts::Stored::Exact;
        }
        if self.repair != Repair::None {
            // Counts that were too low are on the medium before any is lowered.
            self.sync()?;
            self.lower_leaks(&mut counted)?;
        }
        self.check_copied(&counted)?;
        if self.repair != Repair::None {
            self.sync()?;
        }
        if self.result.image_end_offset == 0 {
            self.result.image_end_offset = self.geometry.cluster_size();
        }
        Ok((self.result, self.header))
    }

    fn tell(&mut self, message: String) {
        if self.result.messages.len() < MAX_MESSAGES {
            self.result.messages.push(message);
        }
    }

    fn corruption(&mut self, message: String) {
        self.result.corruptions += 1;
        self.tell(message);
    }

    fn read_words(&mut self, offset: u64, count: u64) -> Option<Vec<u64>> {
        let mut bytes = vec![0u8; (count * 8) as usize];
        let len = bytes.len();
        match self.storage.read(offset, &mut &mut bytes[..], 0, len) {
            Ok(()) => Some(
                bytes
                    .chunks_exact(8)
                    .map(|word| word.try_into().map_or(0, u64::from_be_bytes))
                    .collect(),
            ),
            Err(error) => {
                self.result.check_errors += 1;
                self.tell(format!(
                    "ERROR: cannot read a table at {offset:#x}: {error}"
                ));
                None
            }
        }
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.storage
            .write(offset, &bytes, 0, bytes.len())
            .map_err(|error| Error::io("cannot write metadata", error))
    }

    fn sync(&self) -> Result<()> {
        self.storage
            .sync()
            .map_err(|error| Error::io("flush error", error))
    }

    /// One more use of all clusters of a range; returns whether the range can be.
    fn count(&mut self, what: &str, offset: u64, len: u64) -> bool {
        if len == 0 {
            return true;
        }
        let first = self.geometry.cluster_of(HostOffset(offset)).0;
        let last = self.geometry.cluster_of(HostOffset(offset + len - 1)).0;
        // The last sectors of a compressed cluster, and tables never written, may lie beyond the end. Far beyond cannot be.
        if last >= self.file_clusters + self.slack() {
            self.corruption(format!(
                "ERROR: {what}: trying to increase refcount for region exceeding the end of the image file \
                 (image has {} clusters, cluster {last} is used)",
                self.file_clusters
            ));
            return false;
        }
        for cluster in first..=last {
            self.counts.add(cluster);
        }
        true
    }

    /// Clusters that may be in use beyond the end of the file.
    fn slack(&self) -> u64 {
        1 + (1 << 20 >> self.geometry.cluster_bits.min(20))
    }
}
