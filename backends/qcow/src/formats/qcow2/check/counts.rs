//! How often each cluster is used: a sparse array, so that the size of a sparse file costs nothing.

use std::collections::{BTreeMap, HashMap};

/// Counts in one chunk.
const CHUNK: u64 = 1024;
/// A count of this much is found in the map of large ones.
const LARGE: u8 = u8::MAX;

/// A count per cluster.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Where in `chunks` the counts of each `CHUNK` clusters are, plus one; 0 where none is used.
    directory: Vec<u32>,
    chunks: Vec<Box<[u8]>>,
    large: HashMap<u64, u64>,
}

impl Counts {
    fn chunk(&self, index: u64) -> Option<&[u8]> {
        let at = *self.directory.get(usize::try_from(index).ok()?)?;
        self.chunks
            .get((at as usize).checked_sub(1)?)
            .map(|chunk| &chunk[..])
    }

    fn chunk_mut(&mut self, index: u64) -> Option<&mut [u8]> {
        let index = usize::try_from(index).ok()?;
        if self.directory.len() <= index {
            self.directory.resize(index + 1, 0);
        }
        let place = self.directory.get_mut(index)?;
        if *place == 0 {
            self.chunks.push(vec![0; CHUNK as usize].into());
            *place = self.chunks.len() as u32;
        }
        self.chunks
            .get_mut((*place as usize).checked_sub(1)?)
            .map(|chunk| &mut chunk[..])
    }

    /// `uses` uses more, as far as the count stays below `max`; returns how many there was no room for.
    pub(crate) fn add(&mut self, cluster: u64, uses: u64, max: u64) -> u64 {
        let chunk = self.chunk_mut(cluster / CHUNK);
        let place = chunk.and_then(|chunk| chunk.get_mut((cluster % CHUNK) as usize));
        let small = match place {
            Some(count) if uses == 1 && *count < LARGE - 1 && u64::from(*count) < max => {
                *count += 1;
                return 0;
            }
            Some(count) => *count,
            None => return uses,
        };
        let old = self.value(cluster, small);
        let fits = uses.min(max.saturating_sub(old));
        let new = old.saturating_add(fits);
        if new >= u64::from(LARGE) {
            self.large.insert(cluster, new);
        }
        if let Some(count) = self
            .chunk_mut(cluster / CHUNK)
            .and_then(|chunk| chunk.get_mut((cluster % CHUNK) as usize))
        {
            *count = new.min(u64::from(LARGE)) as u8;
        }
        uses - fits
    }

    /// One use less, if there is one.
    pub(crate) fn remove(&mut self, cluster: u64) {
        let Some(new) = self.get(cluster).checked_sub(1) else {
            return;
        };
        self.large.remove(&cluster);
        if let Some(count) = self
            .chunk_mut(cluster / CHUNK)
            .and_then(|chunk| chunk.get_mut((cluster % CHUNK) as usize))
        {
            *count = 0;
        }
        self.add(cluster, new, u64::MAX);
    }

    fn value(&self, cluster: u64, count: u8) -> u64 {
        match count {
            LARGE => self.large.get(&cluster).copied().unwrap_or(0),
            small => u64::from(small),
        }
    }

    pub(crate) fn get(&self, cluster: u64) -> u64 {
        let chunk = self.chunk(cluster / CHUNK).unwrap_or_default();
        match chunk.get((cluster % CHUNK) as usize) {
            Some(count) => self.value(cluster, *count),
            None => 0,
        }
    }

    /// The chunks with clusters of the range. What lies behind it is not looked at: in a sparse file that can be much,
    /// and ranges many.
    fn chunks_of(&self, start: u64, end: u64) -> impl Iterator<Item = (u64, &[u8])> + '_ {
        let last = end.div_ceil(CHUNK).min(self.directory.len() as u64);
        (start / CHUNK..last).filter_map(|index| Some((index, self.chunk(index)?)))
    }

    /// Whether no cluster of the range is used.
    pub(crate) fn none_in(&self, start: u64, end: u64) -> bool {
        self.chunks_of(start, end).all(|(index, chunk)| {
            let base = index * CHUNK;
            let from = start.saturating_sub(base).min(CHUNK) as usize;
            let to = (end - base).min(CHUNK) as usize;
            let counts = chunk.get(from..to).unwrap_or_default();
            counts.iter().all(|count| *count == 0)
        })
    }

    /// The used clusters from `start` on.
    pub(crate) fn used_from(&self, start: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.used_in(start, u64::MAX)
    }

    /// The used clusters of the range.
    pub(crate) fn used_in(&self, start: u64, end: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.chunks_of(start, end).flat_map(move |(index, chunk)| {
            let base = index * CHUNK;
            (base..)
                .zip(chunk.iter())
                .filter(move |(cluster, count)| **count > 0 && (start..end).contains(cluster))
                .map(|(cluster, count)| (cluster, self.value(cluster, *count)))
        })
    }
}

/// What is known about the refcounts in the file after comparing them.
#[derive(Debug, Default)]
pub(crate) struct Stored {
    /// Those that differ from what was counted, of clusters in use.
    differing: BTreeMap<u64, u64>,
    /// Ranges of clusters whose refcounts cannot be read.
    unknown: Vec<(u64, u64)>,
}

impl Stored {
    /// The refcount of `cluster` is another one than was counted.
    pub(crate) fn differs(&mut self, cluster: u64, stored: u64) {
        self.differing.insert(cluster, stored);
    }

    /// The refcounts of these clusters cannot be read.
    pub(crate) fn unknown(&mut self, first: u64, end: u64) {
        self.unknown.push((first, end));
    }

    /// The refcount of `cluster` in the file, if it can be read.
    pub(crate) fn get(&self, counts: &Counts, cluster: u64) -> Option<u64> {
        let unknown = |(first, end): &(u64, u64)| (*first..*end).contains(&cluster);
        if self.unknown.iter().any(unknown) {
            return None;
        }
        let counted = || counts.get(cluster);
        Some(
            self.differing
                .get(&cluster)
                .copied()
                .unwrap_or_else(counted),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::Counts;

    #[test]
    fn counts_are_kept_whatever_their_size() {
        let mut counts = Counts::default();
        assert_eq!(counts.add(5000, 254, u64::MAX), 0);
        assert_eq!(counts.add(5000, 2, u64::MAX), 0);
        assert_eq!(counts.add(5000, 1 << 40, u64::MAX), 0);
        assert_eq!(counts.get(5000), 256 + (1 << 40));
        assert_eq!(counts.add(7, 5, 3), 2);
        assert_eq!(counts.get(7), 3);
        assert_eq!(counts.get(1 << 40), 0);
        let used: Vec<_> = counts.used_from(0).collect();
        assert_eq!(used, [(7, 3), (5000, 256 + (1 << 40))]);
        assert!(counts.none_in(8, 5000) && !counts.none_in(8, 5001));
        assert!(counts.none_in(5001, u64::MAX));
        let used: Vec<_> = counts.used_in(8, 5001).collect();
        assert_eq!(used, [(5000, 256 + (1 << 40))]);
        assert_eq!(counts.used_in(8, 5000).count(), 0);
    }

    #[test]
    fn a_use_is_taken_back_and_one_that_was_never_counted_takes_no_memory() {
        let mut counts = Counts::default();
        counts.add(7, 300, u64::MAX);
        counts.remove(7);
        counts.remove(1 << 30);
        assert_eq!(counts.get(7), 299);
        assert_eq!(counts.directory.len(), 1);
    }
}
