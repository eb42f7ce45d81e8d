//! The cache of metadata tables, with undo.
//!
//! Every table of a qcow2 file (L1, L2, refcount table, refcount blocks) is an array of big-endian 64-bit words, so one
//! cache of pages by host offset holds them all. An operation that finds a page missing stops with [`Stop::Need`];
//! everything it changed is undone, the driver reads the page by whatever means it has, and the operation starts again.
//! So operations are written as if all tables were in memory, and a failed one leaves no trace.
//!
//! What is to be written is taken as it is at one moment, and stays in the cache while it is on its way: operations go
//! on meanwhile, and a page that one of them changes is copied first and has to be written once more.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::formats::qcow2::engine::{Stop, Undo};
use crate::formats::qcow2::layout::table::Table;

/// The content of pages by their offsets, in order.
pub(crate) type DirtyPages = Vec<(u64, Arc<[u64]>)>;

#[derive(Debug)]
struct Page {
    words: Arc<[u64]>,
    /// Changed since it was last taken to be written.
    dirty: Option<Table>,
    /// It is part of a batch that may not be in the file yet.
    in_writeback: Option<Table>,
    /// It is not what the file had when it was read.
    changed: bool,
    /// Looked at since it was last spared.
    used: AtomicBool,
}

impl Page {
    /// Several may look at once; what is true already is not written again, so that they do not get in each other's
    /// way.
    fn was_used(&self) {
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
    }
}

/// The cache.
#[derive(Debug)]
pub(crate) struct Pages {
    map: HashMap<u64, Page>,
    /// Pages in the order they came, for the second-chance replacement.
    queue: VecDeque<u64>,
    page_size: u64,
    capacity: usize,
    /// How many pages of each table are dirty, and how many are being written.
    dirty: [usize; 4],
    in_writeback: [usize; 4],
    /// How often a page was dropped that had been changed: what was read before that may be older than the file.
    dropped: u64,
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
            dirty: [0; 4],
            in_writeback: [0; 4],
            dropped: 0,
        }
    }

    fn split(&self, offset: u64) -> (u64, usize) {
        let page = offset & !(self.page_size - 1);
        (page, ((offset - page) / 8) as usize)
    }

    /// The word at `offset`.
    pub(crate) fn get(&self, offset: u64) -> Result<u64, Stop> {
        let (start, index) = self.split(offset);
        match self.map.get(&start) {
            Some(page) => {
                page.was_used();
                Ok(page.words.get(index).copied().unwrap_or(0))
            }
            None => Err(Stop::Need {
                offset: start,
                len: self.page_size,
            }),
        }
    }

    /// All words of the page that holds `offset`, from it to the end of the page.
    pub(crate) fn words_from(&self, offset: u64) -> Result<&[u64], Stop> {
        let (start, index) = self.split(offset);
        match self.map.get(&start) {
            Some(page) => {
                page.was_used();
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
        let Some(word) = Arc::make_mut(&mut page.words).get_mut(index) else {
            return Ok(());
        };
        undo.push(Undo::Word {
            offset,
            value: *word,
            dirty: page.dirty,
        });
        *word = value;
        count(&mut self.dirty, page.dirty, Some(table));
        page.dirty = Some(table);
        page.changed = true;
        page.was_used();
        Ok(())
    }

    /// The word at `offset` and the table it belongs to, if that was changed and not taken to be written since.
    pub(crate) fn changed(&self, offset: u64) -> Option<(Table, u64)> {
        let (start, index) = self.split(offset);
        let page = self.map.get(&start)?;
        Some((page.dirty?, *page.words.get(index)?))
    }

    /// Takes back one change.
    pub(crate) fn restore(&mut self, offset: u64, value: u64, dirty: Option<Table>) {
        let (start, index) = self.split(offset);
        if let Some(page) = self.map.get_mut(&start) {
            if let Some(word) = Arc::make_mut(&mut page.words).get_mut(index) {
                *word = value;
            }
            count(&mut self.dirty, page.dirty, dirty);
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
                    in_writeback: None,
                    changed: true,
                    used: AtomicBool::new(true),
                },
            );
            self.queue.push_back(start);
            count(&mut self.dirty, None, Some(table));
        }
        undo.push(Undo::Created { offset, len });
    }

    /// Takes in what was read from `offset`; pages that are there already are newer and stay. If [`Pages::dropped`] has
    /// changed since the file was read, it must be read again instead.
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
                    in_writeback: None,
                    changed: false,
                    used: AtomicBool::new(true),
                },
            );
            self.queue.push_back(start);
        }
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.map.len()
    }

    /// How often what had been read before became worthless; see [`Pages::fill`].
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Drops the pages of a range, changed or not: the table is no longer one.
    pub(crate) fn forget(&mut self, offset: u64, len: u64) {
        for start in (offset..offset + len).step_by(self.page_size as usize) {
            self.remove(start);
        }
    }

    fn remove(&mut self, start: u64) {
        if let Some(page) = self.map.remove(&start) {
            count(&mut self.dirty, page.dirty, None);
            count(&mut self.in_writeback, page.in_writeback, None);
            self.dropped += u64::from(page.changed);
        }
    }

    /// Drops all pages.
    pub(crate) fn clear(&mut self) {
        self.map.clear();
        self.queue.clear();
        self.dirty = [0; 4];
        self.in_writeback = [0; 4];
        self.dropped += 1;
    }

    /// The dirty pages of a table as they are now. They are in writeback until [`Pages::end_writeback`].
    pub(crate) fn take_dirty(&mut self, table: Table) -> DirtyPages {
        let mut pages = DirtyPages::new();
        if self.dirty[table as usize] == 0 {
            return pages;
        }
        for (start, page) in &mut self.map {
            if page.dirty == Some(table) {
                pages.push((*start, page.words.clone()));
                count(&mut self.dirty, page.dirty.take(), None);
                count(&mut self.in_writeback, page.in_writeback, Some(table));
                page.in_writeback = Some(table);
            }
        }
        pages.sort_unstable_by_key(|(start, _)| *start);
        pages
    }

    /// These pages are in the file now; if not `written`, they are dirty again.
    pub(crate) fn end_writeback(&mut self, pages: &DirtyPages, written: bool) {
        for (start, _) in pages {
            let Some(page) = self.map.get_mut(start) else {
                continue;
            };
            let table = page.in_writeback.take();
            count(&mut self.in_writeback, table, None);
            if !written && page.dirty.is_none() {
                page.dirty = table;
                count(&mut self.dirty, None, table);
            }
        }
    }

    /// Whether the table has dirty pages that are in no batch yet.
    pub(crate) fn has_dirty(&self, table: Table) -> bool {
        self.dirty[table as usize] > 0
    }

    /// Whether the file may lack changes of a table.
    pub(crate) fn has_unwritten(&self, table: Table) -> bool {
        self.dirty[table as usize] + self.in_writeback[table as usize] > 0
    }

    /// So much is unwritten that it should be written before more comes.
    pub(crate) fn is_crowded(&self) -> bool {
        self.dirty.iter().sum::<usize>() > self.capacity / 2
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
                Some(page)
                    if page.used.load(Ordering::Relaxed)
                        || page.dirty.or(page.in_writeback).is_some() =>
                {
                    *page.used.get_mut() = false;
                    self.queue.push_back(start);
                }
                Some(_) => self.remove(start),
            }
        }
    }
}

/// Keeps the number of pages of each table when one changes from `old` to `new`.
fn count(counts: &mut [usize; 4], old: Option<Table>, new: Option<Table>) {
    if let Some(old) = old {
        counts[old as usize] -= 1;
    }
    if let Some(new) = new {
        counts[new as usize] += 1;
    }
}
