//! Replaces the active tables, the snapshots and all refcounts of an image by one write of the header.
//!
//! The active tables are copied to free clusters, with the COPIED flags they will need; all clusters that will be in
//! use are counted, and the refcounts are written beside the old ones. Until the header is written the new tables are
//! unused; after that, what only the old ones used is free. So refcounts and flags, which lie in different clusters,
//! agree at any instant in either version, and no dirty bit is needed.

use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::formats::qcow2::check::Check;
use crate::formats::qcow2::check::counts::Counts;
use crate::formats::qcow2::journal::Freed;
use crate::formats::qcow2::layout::address::{ClusterIndex, HostOffset};
use crate::formats::qcow2::layout::geometry::{
    COPIED, MAX_L1_BYTES, MAX_REFCOUNT_TABLE_BYTES, OFFSET_MASK,
};
use crate::formats::qcow2::layout::header::Header;
use crate::formats::qcow2::layout::l2::L2Entry;
use crate::formats::qcow2::layout::refcount::to_bytes;
use crate::formats::qcow2::layout::snapshot_table::{MAX_TABLE_BYTES, Snapshot};
use crate::formats::qcow2::rewrite::restore_places::OldPlaces;

/// What an image is to become.
#[derive(Debug)]
pub(crate) struct NewTables {
    /// The entries of the active L1 table: of which L2 tables, as they are now, the disk is to consist.
    pub(crate) l1: Vec<u64>,
    pub(crate) size: u64,
    /// The snapshots, if there are to be others.
    pub(crate) snapshots: Option<Vec<Snapshot>>,
    /// The entries of the L1 table of the last of them, if that is to be written.
    pub(crate) fresh_l1: Option<Vec<u64>>,
}

/// What an image has become.
#[derive(Debug)]
pub(crate) struct Replaced {
    pub(crate) header: Header,
    pub(crate) snapshots: Option<Vec<Snapshot>>,
    pub(crate) freed: Vec<Freed>,
}

/// Where the new tables lie.
struct Places {
    /// By the index in the L1 table: the L2 table as it is, and where its copy goes.
    l2: Vec<(usize, u64, u64)>,
    l1: u64,
    fresh_l1: u64,
    snapshots: u64,
}

impl Check<'_> {
    /// Makes the image what `trees` says.
    ///
    /// # Errors
    /// If the tables are damaged, there is no space, or a cluster would be used more often than a refcount can count.
    /// Nothing has changed then, unless it is `lost` what is on the medium.
    pub(crate) fn replace_tables(
        mut self,
        mut trees: NewTables,
        lost: &mut bool,
    ) -> Result<Replaced> {
        self.count_old()?;
        let home = OldPlaces::of(&self);
        let places = self.choose_places(&trees)?;
        if let Some(last) = trees.snapshots.as_mut().and_then(|list| list.last_mut())
            && trees.fresh_l1.is_some()
        {
            last.l1_offset = places.fresh_l1;
        }
        let table = self.encode_snapshots(&trees);
        let table_len = table.as_ref().map(Vec::len);
        self.count_new(&trees, &places, table_len)?;
        for (_, from, to) in &places.l2 {
            self.copy_l2(*from, *to)?;
        }
        let mut l1 = vec![0; trees.l1.len()];
        for (index, _, to) in &places.l2 {
            if let Some(entry) = l1.get_mut(*index) {
                *entry = to | COPIED;
            }
        }
        self.write_padded(places.l1, to_bytes(&l1))?;
        if let Some(l1) = &trees.fresh_l1 {
            let entries: Vec<u64> = l1.iter().map(|entry| entry & OFFSET_MASK).collect();
            self.write_padded(places.fresh_l1, to_bytes(&entries))?;
        }
        if let Some(table) = table {
            self.header.snapshots = trees.snapshots.as_ref().map_or(0, Vec::len) as u32;
            self.header.snapshots_offset = places.snapshots;
            self.write_padded(places.snapshots, table)?;
        }
        self.header.l1_offset = places.l1;
        self.header.l1_size = l1.len() as u32;
        self.header.size = trees.size;
        self.write_refcounts()?;
        *lost = true;
        self.sync()?;
        self.write_header()?;
        *lost = false;
        if trees.fresh_l1.is_some()
            && let Some(list) = &trees.snapshots
        {
            self.snapshots.clone_from(list);
            self.snapshot_bytes = table_len.unwrap_or(0) as u64;
            self.restore_places(&home, &trees.l1, lost)?;
        }
        Ok(Replaced {
            freed: self.freed(),
            header: self.header,
            snapshots: trees.snapshots,
        })
    }

    /// Finds out what is in use: by the refcounts or by the tables.
    fn count_old(&mut self) -> Result<()> {
        if self.clusters > crate::formats::qcow2::check::MAX_CLUSTERS {
            return Err(Error::unsupported("File too large"));
        }
        self.read_snapshot_table()?;
        self.read_refcount_table()?;
        self.count_everything(false)?;
        self.refuse_damage()?;
        let mut taken = self.stored_counts()?;
        if let Some((cluster, _)) =
            (self.counts.used_from(0)).find(|(at, uses)| taken.get(*at) < *uses)
        {
            return Err(Error::corrupt(format!(
                "cluster {cluster} is used more often than its refcount says"
            )));
        }
        self.taken = std::mem::take(&mut taken);
        self.counts = Counts::default();
        Ok(())
    }

    fn refuse_damage(&self) -> Result<()> {
        if self.result.corruptions + self.result.check_errors == 0 {
            return Ok(());
        }
        if let Some(offset) = self.beyond {
            // Nothing has been changed, so nothing need be marked; in QEMU, too, this is no more than an error, and one
            // of two.
            let per_block = self.geometry.refcount_block_entries();
            let block = (offset >> self.geometry.cluster_bits) / per_block;
            let why = match block < MAX_REFCOUNT_TABLE_BYTES / 8 {
                true => Errno::AGAIN,
                false => Errno::FBIG,
            };
            return Err(Error::io(
                format!("the tables lead to {offset:#x}, beyond the end of the file"),
                why.into(),
            ));
        }
        let what = self.result.messages.last().map_or("", |message| message);
        Err(Error::corrupt(format!(
            "the tables of the image are damaged: {what}"
        )))
    }

    /// Places for all tables but the refcounts, in clusters that nothing uses; they are counted.
    fn choose_places(&mut self, trees: &NewTables) -> Result<Places> {
        let geometry = self.geometry;
        let offset = |cluster| geometry.offset_of(ClusterIndex(cluster)).0;
        let l1_bytes = trees.l1.len() as u64 * 8;
        if l1_bytes > MAX_L1_BYTES {
            return Err(Error::corrupt("Active L1 table too large"));
        }
        let fresh = trees
            .fresh_l1
            .as_ref()
            .map_or(0, |l1| l1.len().max(1) as u64);
        let encoded = trees.snapshots.as_deref().map_or(0, encoded_len);
        if encoded > MAX_TABLE_BYTES {
            return Err(Error::invalid("the snapshot table would be too large"));
        }
        let table = |check: &mut Self, bytes: u64| match geometry.clusters_for(bytes) {
            0 => 0,
            clusters => offset(check.take_free(clusters, 1).0),
        };
        // What stays where it is first.
        let fresh_l1 = table(self, fresh * 8);
        let snapshots = table(self, encoded);
        let mut free = 1;
        let mut l2 = Vec::new();
        for (index, entry) in trees.l1.iter().enumerate() {
            if entry & OFFSET_MASK != 0 {
                let (cluster, _) = self.take_free(1, free);
                free = cluster + 1;
                l2.push((index, entry & OFFSET_MASK, offset(cluster)));
            }
        }
        Ok(Places {
            l2,
            l1: table(self, l1_bytes),
            fresh_l1,
            snapshots,
        })
    }

    fn encode_snapshots(&self, trees: &NewTables) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        for snapshot in trees.snapshots.as_ref()? {
            snapshot.encode(&mut bytes, self.header.size);
        }
        Some(bytes)
    }

    /// Counts what will be in use; the places of the new tables are.
    fn count_new(
        &mut self,
        trees: &NewTables,
        places: &Places,
        table: Option<usize>,
    ) -> Result<()> {
        self.walked.clear();
        self.file_len = self
            .file_len
            .max(self.clusters << self.geometry.cluster_bits);
        self.extents = crate::formats::qcow2::check::tables::Extents::new(
            self.storage
                .allocated()
                .map_err(|error| Error::io("cannot find the size", error))?,
        );
        self.count(0, self.geometry.cluster_size(), 1);
        for (_, from, _) in &places.l2 {
            self.meet(*from, true, false)?;
        }
        for entry in trees.fresh_l1.iter().flatten() {
            let l2 = entry & OFFSET_MASK;
            if l2 != 0 {
                self.count(l2, self.geometry.cluster_size(), 1);
                self.meet(l2, false, false)?;
            }
        }
        if let Some(list) = &trees.snapshots {
            self.snapshots.clone_from(list);
            if trees.fresh_l1.is_some() {
                self.snapshots.pop();
            }
        }
        self.count_snapshots(false)?;
        self.walk_again(false)?;
        if table.is_none() {
            self.count(self.header.snapshots_offset, self.snapshot_bytes, 1);
        }
        self.count_bitmaps()?;
        if self.result.corruptions == 0 {
            return Ok(());
        }
        // There were none before.
        Err(Error::invalid(format!(
            "refcounts of {} bits cannot count one more use of all clusters",
            self.geometry.refcount_bits()
        )))
    }

    /// Copies an L2 table of the disk, with the flags that the new counts ask for.
    pub(super) fn copy_l2(&mut self, from: u64, to: u64) -> Result<()> {
        let mut table = vec![0u8; self.geometry.cluster_size() as usize];
        self.each_piece(from, table.len() as u64, |_, at, piece| {
            let place = table.get_mut(at as usize..at as usize + piece.len());
            place.unwrap_or_default().copy_from_slice(piece);
            Ok(())
        })?;
        for bytes in table.chunks_exact_mut(self.geometry.l2_entry_size() as usize) {
            let entry = L2Entry::from_bytes(bytes);
            let Some(host) = self.flagged_place(entry) else {
                continue;
            };
            let uses = self
                .counts
                .get(self.geometry.cluster_of(HostOffset(host)).0);
            let word = entry.word & !COPIED | if uses == 1 { COPIED } else { 0 };
            if let Some(place) = bytes.get_mut(..8) {
                place.copy_from_slice(&word.to_be_bytes());
            }
        }
        self.write(to, &table)
    }

    /// Writes a table that has its clusters for itself.
    fn write_padded(&mut self, offset: u64, mut bytes: Vec<u8>) -> Result<()> {
        let clusters = self.geometry.clusters_for(bytes.len() as u64);
        if offset == 0 {
            return Ok(());
        }
        bytes.resize((clusters.max(1) * self.geometry.cluster_size()) as usize, 0);
        self.write(offset, &bytes)
    }

    /// What was in use, and is not any more.
    fn freed(&self) -> Vec<Freed> {
        let mut freed: Vec<Freed> = Vec::new();
        for (cluster, _) in self.taken.used_from(0) {
            if self.counts.get(cluster) > 0 {
                continue;
            }
            let host = self.geometry.offset_of(ClusterIndex(cluster));
            match freed.last_mut() {
                Some(last)
                    if last.host.0 + (last.clusters << self.geometry.cluster_bits) == host.0 =>
                {
                    last.clusters += 1;
                }
                _ => freed.push(Freed::new(host, 1)),
            }
        }
        freed
    }
}

/// Bytes of a snapshot table.
fn encoded_len(list: &[Snapshot]) -> u64 {
    let mut bytes = Vec::new();
    for snapshot in list {
        snapshot.encode(&mut bytes, 0);
    }
    bytes.len() as u64
}
