//! A sparse file in memory.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use qcow::{Destination, Source, Storage};

const PAGE: u64 = 4096;
/// The longest file the storage lets an image grow to; beyond, it is full, as a disk would be.
const LIMIT: u64 = 1 << 40;
/// The most pages that may hold data.
const MOST_PAGES: usize = 16 << 10;

type Page = Box<[u8; PAGE as usize]>;

/// The file. Clones are the same file.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Clone, Debug, Default)]
struct Inner {
    pages: BTreeMap<u64, Page>,
    len: u64,
    /// Changes that are still made, if not all are; those after them fail.
    left: Option<u64>,
}

impl Memory {
    /// A file with this content.
    pub fn new(content: &[u8]) -> Self {
        let memory = Self::default();
        let mut inner = memory.lock();
        inner.len = content.len() as u64;
        for (number, chunk) in (0..).zip(content.chunks(PAGE as usize)) {
            inner.page(number)[..chunk.len()].copy_from_slice(chunk);
        }
        drop(inner);
        memory
    }

    /// The whole content.
    pub fn bytes(&self) -> Vec<u8> {
        let inner = self.lock();
        let mut bytes = vec![0; inner.len as usize];
        for (number, page) in &inner.pages {
            let at = (number * PAGE) as usize;
            let end = bytes.len().min(at + PAGE as usize);
            if at < end {
                bytes[at..end].copy_from_slice(&page[..end - at]);
            }
        }
        bytes
    }

    /// Another file with the same content. All changes of it are made.
    pub fn copy(&self) -> Self {
        let inner = Inner {
            left: None,
            ..self.lock().clone()
        };
        Self {
            inner: Arc::new(Mutex::new(inner)),
        }
    }

    /// Only so many changes are made from now on, as if whoever makes them were killed then; those after them fail. Who is dead
    /// stays so.
    pub fn only(&self, changes: u64) {
        self.lock().left.get_or_insert(changes);
    }

    /// All changes are made again.
    pub fn all(&self) {
        self.lock().left = None;
    }

    /// Whether only so many changes are made.
    pub fn is_limited(&self) -> bool {
        self.lock().left.is_some()
    }

    /// Whether a change has failed for want of more.
    pub fn is_spent(&self) -> bool {
        self.lock().left == Some(0)
    }

    /// Makes the content that of another file.
    pub fn become_like(&self, other: &Self) {
        let inner = other.lock().clone();
        *self.lock() = inner;
    }

    /// The file, for a change of it.
    fn change(&self) -> io::Result<MutexGuard<'_, Inner>> {
        let mut inner = self.lock();
        match &mut inner.left {
            Some(0) => return Err(io::Error::other("no more changes are made")),
            Some(left) => *left -= 1,
            None => {}
        }
        Ok(inner)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn page(&mut self, number: u64) -> &mut Page {
        self.pages
            .entry(number)
            .or_insert_with(|| Box::new([0; PAGE as usize]))
    }

    fn grow(&mut self, end: u64) -> io::Result<()> {
        if end > LIMIT || self.pages.len() > MOST_PAGES {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.len = self.len.max(end);
        Ok(())
    }

    fn zero(&mut self, offset: u64, len: u64) {
        let end = offset.saturating_add(len);
        let touched: Vec<u64> = self
            .pages
            .range(offset / PAGE..=end / PAGE)
            .map(|(&number, _)| number)
            .collect();
        for number in touched {
            let start = offset.max(number * PAGE) - number * PAGE;
            let stop = end.min((number + 1) * PAGE).saturating_sub(number * PAGE);
            if start == 0 && stop == PAGE {
                self.pages.remove(&number);
            } else if start < stop {
                self.page(number)[start as usize..stop as usize].fill(0);
            }
        }
    }
}

/// Parts of `offset..offset + len`, each within one page: the page, the place in it, and the place in the whole.
fn parts(offset: u64, len: usize) -> impl Iterator<Item = (u64, std::ops::Range<usize>, usize)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done >= len {
            return None;
        }
        let at = offset + done as u64;
        let start = (at % PAGE) as usize;
        let count = (PAGE as usize - start).min(len - done);
        let part = (at / PAGE, start..start + count, done);
        done += count;
        Some(part)
    })
}

impl Storage for Memory {
    fn read(
        &self,
        offset: u64,
        dst: &mut dyn Destination,
        at: usize,
        len: usize,
    ) -> io::Result<()> {
        let inner = self.lock();
        for (number, range, done) in parts(offset, len) {
            match inner.pages.get(&number) {
                Some(page) => dst.put(at + done, &page[range]),
                None => dst.zero(at + done, range.len()),
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, src: &dyn Source, at: usize, len: usize) -> io::Result<()> {
        let mut inner = self.change()?;
        let end = offset
            .checked_add(len as u64)
            .ok_or(io::ErrorKind::StorageFull)?;
        inner.grow(end)?;
        for (number, range, done) in parts(offset, len) {
            src.get(at + done, &mut inner.page(number)[range]);
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.change().map(drop)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.lock().len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut inner = self.change()?;
        if len < inner.len {
            let cut = inner.len - len;
            inner.zero(len, cut);
            inner.len = len;
            return Ok(());
        }
        inner.grow(len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, _unmap: bool) -> io::Result<()> {
        let mut inner = self.change()?;
        inner.grow(offset.checked_add(len).ok_or(io::ErrorKind::StorageFull)?)?;
        inner.zero(offset, len);
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.change()?.zero(offset, len);
        Ok(())
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.change()?
            .grow(offset.checked_add(len).ok_or(io::ErrorKind::StorageFull)?)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<(u64, u64)>> {
        let inner = self.lock();
        let first = inner.pages.range(offset / PAGE..).next();
        Ok(first
            .map(|(number, _)| {
                (
                    offset.max(number * PAGE),
                    inner.len.min((number + 1) * PAGE),
                )
            })
            .filter(|(start, end)| start < end))
    }

    fn allocated(&self) -> io::Result<u64> {
        Ok(self.lock().pages.len() as u64 * PAGE)
    }
}
