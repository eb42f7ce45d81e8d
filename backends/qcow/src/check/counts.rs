//! How often each cluster is used: a sparse array, so that the size of a sparse file costs nothing.

use std::cell::Cell;
use std::collections::BTreeMap;

const CHUNK: u64 = 256;

/// A count per cluster.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Where in `counts` the chunk of this index is.
    chunks: BTreeMap<u64, usize>,
    counts: Vec<Box<[u32]>>,
    /// The chunk asked for last, which mostly is the one asked for next: its index and where it is.
    last: Cell<Option<(u64, usize)>>,
}

impl Counts {
    fn find(&self, index: u64) -> Option<usize> {
        if let Some((last, at)) = self.last.get()
            && last == index
        {
            return Some(at);
        }
        let at = *self.chunks.get(&index)?;
        self.last.set(Some((index, at)));
        Some(at)
    }

    /// The counts of `CHUNK` clusters from `CHUNK * index` on, if any of them is used.
    fn chunk(&self, index: u64) -> Option<&[u32]> {
        self.counts.get(self.find(index)?).map(|chunk| &chunk[..])
    }

    pub(crate) fn add(&mut self, cluster: u64) {
        let index = cluster / CHUNK;
        let at = self.find(index).unwrap_or_else(|| {
            self.counts.push(vec![0; CHUNK as usize].into());
            self.chunks.insert(index, self.counts.len() - 1);
            self.counts.len() - 1
        });
        let chunk = self.counts.get_mut(at);
        if let Some(count) = chunk.and_then(|chunk| chunk.get_mut((cluster % CHUNK) as usize)) {
            *count = count.saturating_add(1);
        }
    }

    pub(crate) fn get(&self, cluster: u64) -> u64 {
        let chunk = self.chunk(cluster / CHUNK);
        chunk
            .and_then(|chunk| chunk.get((cluster % CHUNK) as usize))
            .map_or(0, |count| u64::from(*count))
    }

    fn from(&self, index: u64) -> impl DoubleEndedIterator<Item = (u64, &[u32])> + '_ {
        let chunk = |(index, at): (&u64, &usize)| {
            (
                *index,
                self.counts.get(*at).map_or(&[][..], |chunk| &chunk[..]),
            )
        };
        self.chunks.range(index..).map(chunk)
    }

    /// Whether no cluster of the range is used.
    pub(crate) fn none_in(&self, start: u64, end: u64) -> bool {
        self.from(start / CHUNK)
            .take_while(|(index, _)| *index < end.div_ceil(CHUNK))
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
        self.from(start / CHUNK).flat_map(move |(index, chunk)| {
            let base = index * CHUNK;
            (base..)
                .zip(chunk.iter())
                .filter(move |(cluster, count)| **count > 0 && *cluster >= start)
                .map(|(cluster, count)| (cluster, u64::from(*count)))
        })
    }

    /// The last used cluster.
    pub(crate) fn last(&self) -> Option<u64> {
        self.from(0).rev().find_map(|(index, chunk)| {
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
