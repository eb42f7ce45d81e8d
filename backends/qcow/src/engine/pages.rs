//! The cache of metadata tables, with undo.
//!
//! Every table of a qcow2 file (L1, L2, refcount table, refcount blocks) is an array of big-endian 64-bit words, so one cache of
//! pages by host offset holds them all. An operation that finds a page missing stops with [`Stop::Need`]; everything it
//! changed is undone, the driver reads the page by whatever means it has, and the operation starts again. So operations
//! are written as if all tables were in memory, and a failed one leaves no trace.

use std::collections::{HashMap, VecDeque};

use crate::engine::{Stop, Undo};

/// Which table a page belongs to, in the order in which they may reach the medium.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Table {
    /// Refcount blocks.
    Refcounts,
    /// The refcount table, which says where the blocks are.
    Blocks,
    L2,
    L1,
}

#[derive(Debug)]
struct Page {
    words: Box<[u64]>,
    dirty: Option<Table>,
    used: bool,
}

/// The cache.
#[derive(Debug)]
pub(crate) struct Pages {
    map: HashMap<u64, Page>,
    /// Pages in the order they came, for the second-chance replacement.
    queue: VecDeque<u64>,
    page_size: u64,
    capacity: usize,
    dirty: usize,
}

impl Pages {
    pub(crate) fn new(cluster_size: u64, bytes: usize) -> Self {
        let page_size = cluster_size.min(4096);
        let capacity = (bytes / page_size as usize).max(64);
        Self {
            map: HashMap::new(),
            queue: VecDeque::new(),
            page_size,
            capacity,
            dirty: 0,
        }
    }

    fn split(&self, offset: u64) -> (u64, usize) {
        let page = offset & !(self.page_size - 1);
        (page, ((offset - page) / 8) as usize)
    }

    /// The word at `offset`.
    pub(crate) fn get(&mut self, offset: u64) -> Result<u64, Stop> {
        let (start, index) = self.split(offset);
        match self.map.get_mut(&start) {
            Some(page) => {
                page.used = true;
                Ok(page.words.get(index).copied().unwrap_or(0))
            }
            None => Err(Stop::Need {
                offset: start,
                len: self.page_size,
            }),
        }
    }

    /// All words of the page that holds `offset`, from it to the end of the page.
    pub(crate) fn words_from(&mut self, offset: u64) -> Result<&[u64], Stop> {
        let (start, index) = self.split(offset);
        match self.map.get_mut(&start) {
            Some(page) => {
                page.used = true;
                Ok(page.words.get(index..).unwrap_or_default())
            }
            None => Err(Stop::Need {
                offset: start,
                len: self.page_size,
            }),
        }
    }

    /// Changes the word at `offset`, which belongs to `table`.
    pub(crate) fn set(
        &mut self,
        table: Table,
        offset: u64,
        value: u64,
        undo: &mut Vec<Undo>,
    ) -> Result<(), Stop> {
        let (start, index) = self.split(offset);
        let Some(page) = self.map.get_mut(&start) else {
            return Err(Stop::Need {
                offset: start,
                len: self.page_size,
            });
        };
        let Some(word) = page.words.get_mut(index) else {
            return Ok(());
        };
        undo.push(Undo::Word {
            offset,
            value: *word,
            dirty: page.dirty,
        });
        *word = value;
        if page.dirty.is_none() {
            self.dirty += 1;
        }
        page.dirty = Some(table);
        page.used = true;
        Ok(())
    }

    /// Takes back one change.
    pub(crate) fn restore(&mut self, offset: u64, value: u64, dirty: Option<Table>) {
        let (start, index) = self.split(offset);
        if let Some(page) = self.map.get_mut(&start) {
            if let Some(word) = page.words.get_mut(index) {
                *word = value;
            }
            if page.dirty.is_some() && dirty.is_none() {
                self.dirty -= 1;
            }
            page.dirty = dirty;
        }
    }

    /// Starts a new table of `len` zero bytes at `offset`, in memory.
    pub(crate) fn create(&mut self, table: Table, offset: u64, len: u64, undo: &mut Vec<Undo>) {
        let words = (self.page_size / 8) as usize;
        for start in (offset..offset + len).step_by(self.page_size as usize) {
            self.forget(start, 1);
            self.map.insert(
                start,
                Page {
                    words: vec![0; words].into(),
                    dirty: Some(table),
                    used: true,
                },
            );
            self.queue.push_back(start);
            self.dirty += 1;
        }
        undo.push(Undo::Created { offset, len });
    }

    /// Takes in what was read from `offset`; pages that are there already are newer and stay.
    pub(crate) fn fill(&mut self, offset: u64, bytes: &[u8]) {
        for (start, chunk) in (offset..)
            .step_by(self.page_size as usize)
            .zip(bytes.chunks_exact(self.page_size as usize))
        {
            if self.map.contains_key(&start) {
                continue;
            }
            let words = chunk
                .chunks_exact(8)
                .map(|word| word.try_into().map_or(0, u64::from_be_bytes))
                .collect();
            self.map.insert(
                start,
                Page {
                    words,
                    dirty: None,
                    used: true,
                },
            );
            self.queue.push_back(start);
        }
    }

    /// Drops the pages of a range, changed or not: the table is no longer one.
    pub(crate) fn forget(&mut self, offset: u64, len: u64) {
        for start in (offset..offset + len).step_by(self.page_size as usize) {
            if let Some(page) = self.map.remove(&start)
                && page.dirty.is_some()
            {
                self.dirty -= 1;
            }
        }
    }

    /// Drops all pages.
    pub(crate) fn clear(&mut self) {
        self.map.clear();
        self.queue.clear();
        self.dirty = 0;
    }

    /// The changed pages of a table, in order of their offsets, adjacent ones joined.
    pub(crate) fn dirty_runs(&self, table: Table) -> Vec<(u64, Vec<u8>)> {
        let mut pages: Vec<(u64, &Page)> = self
            .map
            .iter()
            .filter(|(_, page)| page.dirty == Some(table))
            .map(|(start, page)| (*start, page))
            .collect();
        pages.sort_unstable_by_key(|(start, _)| *start);
        let mut runs: Vec<(u64, Vec<u8>)> = Vec::new();
        for (start, page) in pages {
            let bytes = page.words.iter().flat_map(|word| word.to_be_bytes());
            match runs.last_mut() {
                Some((run, data)) if *run + data.len() as u64 == start => data.extend(bytes),
                _ => runs.push((start, bytes.collect())),
            }
        }
        runs
    }

    /// The pages of this table are on their way to the medium.
    pub(crate) fn mark_clean(&mut self, table: Table) {
        for page in self.map.values_mut() {
            if page.dirty == Some(table) {
                page.dirty = None;
                self.dirty -= 1;
            }
        }
    }

    pub(crate) fn has_dirty(&self, table: Table) -> bool {
        self.dirty > 0 && self.map.values().any(|page| page.dirty == Some(table))
    }

    /// So much is unwritten that it should be written before more comes.
    pub(crate) fn is_crowded(&self) -> bool {
        self.dirty > self.capacity / 2
    }

    /// Drops pages not used for the longest time until the bound is met; changed ones stay.
    pub(crate) fn trim(&mut self) {
        let mut chances = self.queue.len() * 2;
        while self.map.len() > self.capacity && chances > 0 {
            chances -= 1;
            let Some(start) = self.queue.pop_front() else {
                break;
            };
            match self.map.get_mut(&start) {
                None => {}
                Some(page) if page.used || page.dirty.is_some() => {
                    page.used = false;
                    self.queue.push_back(start);
                }
                Some(_) => {
                    self.map.remove(&start);
                }
            }
        }
    }
}
