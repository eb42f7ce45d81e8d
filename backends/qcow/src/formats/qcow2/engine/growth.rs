//! Tables that move: a larger refcount table, another L1 table. The new one is written beside the old one, and
//! one small write of the header switches.

use crate::error::{Error, Result};
use crate::formats::qcow2::engine::{Engine, Stop};
use crate::formats::qcow2::journal::Freed;
use crate::formats::qcow2::layout::address::{ClusterIndex, HostOffset};
use crate::formats::qcow2::layout::geometry::{MAX_REFCOUNT_TABLE_BYTES, OFFSET_MASK};
use crate::formats::qcow2::layout::header::Header;
use crate::formats::qcow2::layout::refcount::{refcount_ones, to_bytes};

/// A switch to another table. The caller writes `writes`, syncs, writes the header, syncs, and then calls
/// [`Engine::switched`].
#[derive(Debug)]
pub(crate) struct Switch {
    pub(crate) writes: Vec<(u64, Vec<u8>)>,
    pub(crate) header: Header,
    /// The old table, which is freed after the switch.
    old: Option<Freed>,
    /// The clusters of the new table and what belongs to it.
    metadata: Vec<ClusterIndex>,
}

/// A table is read in pieces of at most this size, which is a multiple of all page sizes.
const MAX_NEED: u64 = 1 << 20;

impl Engine {
    /// Where the tables of the file lie, for the check against overwriting them. `twice` is an error: what two
    /// tables share cannot be written safely.
    pub(crate) fn register_metadata(
        &mut self,
        what: &str,
        host: HostOffset,
        clusters: u64,
    ) -> Result<()> {
        let first = self.geometry.cluster_of(host).0;
        for cluster in first..first.saturating_add(clusters) {
            if cluster == 0 || !self.overlap.insert(ClusterIndex(cluster)) {
                return Err(Error::corrupt(format!(
                    "{what} at {host} overlaps other metadata"
                )));
            }
        }
        Ok(())
    }

    /// A larger refcount table. Everything else must be written and synced.
    pub(crate) fn grow_refcount_table(&mut self) -> Result<Switch, Stop> {
        let geometry = self.geometry;
        let (size, per_block) = (geometry.cluster_size(), geometry.refcount_block_entries());
        let old_clusters = u64::from(self.header.refcount_table_clusters);
        if old_clusters == 0 {
            return Err(Error::corrupt("the image has no refcount table").into());
        }
        let first = self.refcount_table_end();
        let table_entries = |clusters: u64| clusters * size / 8;
        let max_clusters = (MAX_REFCOUNT_TABLE_BYTES / size).max(1);
        let mut clusters = (old_clusters + old_clusters.div_ceil(2)).min(max_clusters);
        // The new table, and the refcount blocks for its clusters, lie in clusters for which only it has entries.
        let blocks = loop {
            let blocks = (1..)
                .find(|blocks| blocks * per_block >= blocks + clusters)
                .unwrap_or(1);
            if table_entries(clusters) > table_entries(old_clusters) + blocks {
                break blocks;
            }
            if clusters >= max_clusters {
                return Err(Error::invalid("the image file has reached its largest size").into());
            }
            clusters = (clusters * 2).min(max_clusters);
        };
        let mut table = self.words(
            self.header.refcount_table_offset,
            table_entries(old_clusters),
        )?;
        let offset = |index: u64| geometry.offset_of(ClusterIndex(first + index)).0;
        table.extend((0..blocks).map(offset));
        table.resize(table_entries(clusters) as usize, 0);
        let mut writes = vec![(offset(blocks), to_bytes(&table))];
        let counts = refcount_ones(&geometry, blocks + clusters, blocks);
        for (index, block) in (0..).zip(counts.chunks(size as usize)) {
            writes.push((offset(index), block.to_vec()));
        }
        let mut header = self.header.clone();
        header.refcount_table_offset = offset(blocks);
        header.refcount_table_clusters = clusters as u32;
        self.check_apart(
            "the end of the refcount table",
            HostOffset(offset(0)),
            HostOffset(offset(blocks + clusters - 1)),
        )?;
        let old = Freed::new(HostOffset(self.header.refcount_table_offset), old_clusters);
        let metadata = (first..first + blocks + clusters)
            .map(ClusterIndex)
            .collect();
        Ok(Switch {
            writes,
            header,
            old: Some(old),
            metadata,
        })
    }

    /// Another L1 table with these entries, at `host`, where its clusters are allocated already.
    pub(crate) fn replace_l1(
        &mut self,
        host: HostOffset,
        entries: &[u64],
        header: &Header,
    ) -> Switch {
        let clusters = self.geometry.clusters_for(entries.len() as u64 * 8).max(1);
        let mut bytes = to_bytes(entries);
        bytes.resize((clusters * self.geometry.cluster_size()) as usize, 0);
        let mut header = header.clone();
        header.l1_offset = host.0;
        header.l1_size = entries.len() as u32;
        let old_clusters = self
            .geometry
            .clusters_for(u64::from(self.header.l1_size) * 8);
        let old = (old_clusters > 0)
            .then_some(Freed::new(HostOffset(self.header.l1_offset), old_clusters));
        let first = self.geometry.cluster_of(host).0;
        Switch {
            writes: vec![(host.0, bytes)],
            header,
            old,
            metadata: (first..first + clusters).map(ClusterIndex).collect(),
        }
    }

    /// To be called once the header is on the medium: uses the new table, and frees the old one in the next batches.
    pub(crate) fn switched(&mut self, switch: Switch) {
        self.header = switch.header;
        for cluster in switch.metadata {
            self.overlap.insert(cluster);
        }
        if let Some(old) = switch.old {
            self.forget(old);
            self.freed.push(old);
        }
    }

    /// Words of a table.
    pub(crate) fn words(&mut self, offset: u64, count: u64) -> Result<Vec<u64>, Stop> {
        let mut words = Vec::new();
        while (words.len() as u64) < count {
            match self.pages.words_from(offset + words.len() as u64 * 8) {
                Ok(more) => words.extend_from_slice(more),
                // All missing pages in one read.
                Err(Stop::Need {
                    offset: missing,
                    len,
                }) => {
                    let left = offset + count * 8 - missing;
                    return Err(Stop::Need {
                        offset: missing,
                        len: left.next_multiple_of(len).min(MAX_NEED),
                    });
                }
                Err(stop) => return Err(stop),
            }
        }
        words.truncate(count as usize);
        Ok(words)
    }

    /// All entries of the active L1 table.
    pub(crate) fn l1_words(&mut self) -> Result<Vec<u64>, Stop> {
        self.words(self.header.l1_offset, u64::from(self.header.l1_size))
    }

    /// All blocks the refcount table names.
    pub(crate) fn refcount_table_words(&mut self) -> Result<Vec<u64>, Stop> {
        let count =
            (u64::from(self.header.refcount_table_clusters) << self.geometry.cluster_bits) / 8;
        self.words(self.header.refcount_table_offset, count)
    }

    /// Registers what the active L1 table and the refcount table point to, in a file of `file_len` bytes.
    pub(crate) fn register_tables(
        &mut self,
        l1: &[u64],
        refcount_table: &[u64],
        file_len: u64,
    ) -> Result<()> {
        for (what, table) in [("L2 table", l1), ("refcount block", refcount_table)] {
            for offset in table
                .iter()
                .map(|entry| entry & OFFSET_MASK)
                .filter(|offset| *offset != 0)
            {
                // A table is written before anything points to it, so none lies past the end of the file. This also
                // bounds the memory used.
                if offset >= file_len {
                    return Err(Error::corrupt(format!(
                        "{what} at {offset:#x} lies beyond the end of the file"
                    )));
                }
                self.register_metadata(what, HostOffset(offset), 1)?;
            }
        }
        Ok(())
    }
}
