//! How often each cluster is used: a sparse array, so that the size of a sparse file costs nothing.

use std::collections::BTreeMap;

const CHUNK: u64 = 4096;

/// A count per cluster.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    chunks: BTreeMap<u64, Box<[u32]>>,
}

impl Counts {
    pub(crate) fn add(&mut self, cluster: u64) {
        let chunk = self
            .chunks
            .entry(cluster / CHUNK)
            .or_insert_with(|| vec![0; CHUNK as usize].into());
        if let Some(count) = chunk.get_mut((cluster % CHUNK) as usize) {
            *count = count.saturating_add(1);
        }
    }

    pub(crate) fn get(&self, cluster: u64) -> u64 {
        self.chunks
            .get(&(cluster / CHUNK))
            .and_then(|chunk| chunk.get((cluster % CHUNK) as usize))
            .map_or(0, |count| u64::from(*count))
    }

    /// Whether no cluster of the range is used.
    pub(crate) fn none_in(&self, start: u64, end: u64) -> bool {
        self.chunks
            .range(start / CHUNK..end.div_ceil(CHUNK))
            .all(|(index, chunk)| {
                let base = index * CHUNK;
                let from = start.saturating_sub(base).min(CHUNK) as usize;
                let to = (end - base).min(CHUNK) as usize;
                chunk
                    .get(from..to)
                    .unwrap_or_default()
                    .iter()
                    .all(|count| *count == 0)
            })
    }

    /// The used clusters from `start` on.
    pub(crate) fn used_from(&self, start: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.chunks
            .range(start / CHUNK..)
            .flat_map(move |(index, chunk)| {
                let base = index * CHUNK;
                (base..)
                    .zip(chunk.iter())
                    .filter(move |(cluster, count)| **count > 0 && *cluster >= start)
                    .map(|(cluster, count)| (cluster, u64::from(*count)))
            })
    }

    /// The last used cluster.
    pub(crate) fn last(&self) -> Option<u64> {
        self.chunks.iter().rev().find_map(|(index, chunk)| {
            chunk
                .iter()
                .rposition(|count| *count > 0)
                .map(|position| index * CHUNK + position as u64)
        })
    }
}

/// What is known about the refcounts in the file after comparing them.
#[derive(Debug)]
pub(crate) enum Stored {
    /// They are as counted.
    Exact,
    /// These differ from what was counted.
    Differing(BTreeMap<u64, u64>),
}

impl Stored {
    /// The refcount of `cluster` is now as counted.
    pub(crate) fn put_right(&mut self, cluster: u64) {
        if let Self::Differing(map) = self {
            map.remove(&cluster);
        }
    }

    /// The refcount of `cluster` in the file.
    pub(crate) fn get(&self, counts: &Counts, cluster: u64) -> u64 {
        match self {
            Self::Exact => counts.get(cluster),
            Self::Differing(map) => map
                .get(&cluster)
                .copied()
                .unwrap_or_else(|| counts.get(cluster)),
        }
    }
}
