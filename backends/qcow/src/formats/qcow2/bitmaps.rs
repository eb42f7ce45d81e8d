//! Persistent dirty bitmaps of an open image: adding, removing, merging, and keeping enabled ones up to date.
//!
//! Whatever changes, the new data, table and directory are written beside the old ones, and one write of the header
//! switches. The first change of the disk marks enabled bitmaps as in use, so that after a crash nobody trusts them;
//! closing the image stores them.

mod ranges;
mod store;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::{Error, ErrorKind, Result};
use crate::formats::qcow2::Qcow2;
use crate::formats::qcow2::layout::bitmap::{Bitmap, read_directory};
use crate::report::BitmapInfo;

pub use ranges::DirtyRanges;

/// Bits of bitmaps held in memory at most, in bytes.
const MAX_MEMORY: u64 = 64 << 20;

/// The bitmaps of an open image.
#[derive(Debug, Default)]
pub(crate) struct Bitmaps {
    /// Whether some bitmap is enabled, so that changes of the disk must be recorded. Read without the lock.
    pub(super) tracking: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    list: Vec<Entry>,
    /// The enabled bitmaps are in memory and marked as in use in the file.
    active: bool,
}

#[derive(Debug, Clone)]
struct Entry {
    meta: Bitmap,
    bits: Bits,
}

/// The bits of a bitmap, and whether they are to be stored.
#[derive(Debug, Clone)]
enum Bits {
    /// Those in the file.
    Stored,
    /// Those in the file, to be stored anew.
    Moved,
    /// None is set.
    Blank,
    /// In memory.
    Memory(Vec<u8>),
}

impl Bitmaps {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, state: &State) {
        let tracking = state
            .list
            .iter()
            .any(|entry| entry.meta.is_enabled() && !entry.meta.in_use())
            || state.active;
        self.tracking.store(tracking, Ordering::Release);
    }
}

impl Qcow2 {
    /// Reads the directory of an image about to be written.
    pub(super) fn load_bitmaps(&self) -> Result<()> {
        let header = self.engine_exclusive().header.clone();
        let list = read_directory(&*self.storage, &header)?;
        let mut state = self.bitmaps.state();
        state.list = list
            .into_iter()
            .map(|meta| Entry {
                meta,
                bits: Bits::Stored,
            })
            .collect();
        state.active = false;
        self.bitmaps.note(&state);
        Ok(())
    }

    pub(super) fn bitmap_infos(&self) -> Result<Vec<BitmapInfo>> {
        if self.writable && !self.for_check {
            return Ok(self
                .bitmaps
                .state()
                .list
                .iter()
                .map(|entry| entry.meta.info())
                .collect());
        }
        let header = self.engine_exclusive().header.clone();
        Ok(read_directory(&*self.storage, &header)?
            .iter()
            .map(Bitmap::info)
            .collect())
    }

    /// The disk is about to change in this range.
    pub(super) fn note_change(&self, start: u64, len: u64) -> Result<()> {
        if !self.bitmaps.tracking.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut state = self.bitmaps.state();
        if !state.active {
            self.activate(&mut state)?;
        }
        for entry in state
            .list
            .iter_mut()
            .filter(|entry| entry.meta.is_enabled())
        {
            if let Bits::Memory(bits) = &mut entry.bits {
                ranges::set(bits, entry.meta.granularity_bits, start, len);
            }
        }
        Ok(())
    }

    /// Takes the enabled bitmaps into memory and marks them as in use.
    fn activate(&self, state: &mut State) -> Result<()> {
        let mut marked = state.list.clone();
        let mut memory = 0;
        for (entry, marked) in state.list.iter_mut().zip(&mut marked) {
            if !entry.meta.is_enabled() || entry.meta.in_use() {
                continue;
            }
            memory += entry.meta.data_bytes(self.size());
            // A bitmap that does not fit stays marked as in use, and so is not trusted any more.
            if memory <= MAX_MEMORY {
                entry.bits = Bits::Memory(self.read_bits(&entry.meta)?);
            }
            marked.meta.set_in_use(true);
        }
        self.store_list(&mut self.engine_exclusive(), &mut marked, None)?;
        for (entry, marked) in state.list.iter_mut().zip(marked) {
            entry.meta = marked.meta;
        }
        state.active = true;
        Ok(())
    }

    /// Stores what is in memory; afterwards the bitmaps can be trusted again.
    pub(super) fn store_bitmaps(&self) -> Result<()> {
        let mut state = self.bitmaps.state();
        if !state.active {
            return Ok(());
        }
        for entry in &mut state.list {
            if matches!(entry.bits, Bits::Memory(_)) {
                entry.meta.set_in_use(false);
            }
        }
        self.store_list(&mut self.engine_exclusive(), &mut state.list, None)?;
        state.active = false;
        self.bitmaps.note(&state);
        Ok(())
    }

    /// Changes the list of bitmaps and stores it. All that can be trusted are stored anew, as QEMU does whenever it
    /// closes an image: they lie one after the other, and what a bitmap no longer needs is free.
    fn change_bitmaps<T>(&self, change: impl FnOnce(&mut Vec<Entry>) -> Result<T>) -> Result<T> {
        let _guard = self.ranges.exclusive(0..u64::MAX);
        if self.engine_exclusive().header.version < 3 {
            return Err(Error::unsupported(
                "Cannot store dirty bitmaps in qcow2 v2 files",
            ));
        }
        // What was recorded in memory goes to the file first, so that the file is complete.
        self.store_bitmaps()?;
        let mut state = self.bitmaps.state();
        let mut list = state.list.clone();
        let value = change(&mut list)?;
        for entry in list.iter_mut().filter(|entry| !entry.meta.in_use()) {
            if matches!(entry.bits, Bits::Stored) {
                entry.bits = Bits::Moved;
            }
        }
        self.store_list(&mut self.engine_exclusive(), &mut list, None)?;
        state.list = list;
        self.bitmaps.note(&state);
        Ok(value)
    }

    pub(crate) fn bitmap_add(&self, name: &str, granularity: u64, enabled: bool) -> Result<()> {
        let meta = Bitmap::new(name, granularity, enabled)?;
        if self.size() == 0 {
            return Err(empty_disk());
        }
        self.change_bitmaps(|list| {
            if list.iter().any(|entry| entry.meta.name == name) {
                return Err(Error::invalid(format!("Bitmap already exists: {name}")));
            }
            if list.len() >= 65535 {
                return Err(Error::invalid(
                    "Maximum number of persistent bitmaps is already reached",
                ));
            }
            list.push(Entry {
                meta,
                bits: Bits::Blank,
            });
            Ok(())
        })
    }

    pub(crate) fn bitmap_remove(&self, name: &str) -> Result<()> {
        self.change_bitmaps(|list| {
            let index = list
                .iter()
                .position(|entry| entry.meta.name == name)
                .ok_or_else(|| missing(name))?;
            list.remove(index);
            Ok(())
        })
    }

    pub(crate) fn bitmap_clear(&self, name: &str) -> Result<()> {
        self.change_bitmaps(|list| {
            usable(list, name)?.bits = Bits::Blank;
            Ok(())
        })
    }

    pub(crate) fn bitmap_enable(&self, name: &str, enabled: bool) -> Result<()> {
        self.change_bitmaps(|list| {
            usable(list, name)?.meta.set_enabled(enabled);
            Ok(())
        })
    }

    /// The ranges of the disk that a bitmap says are dirty.
    pub(crate) fn bitmap_ranges(&self, name: &str) -> Result<DirtyRanges> {
        if self.writable && !self.for_check {
            self.store_bitmaps()?;
        }
        let header = self.engine_exclusive().header.clone();
        let list = read_directory(&*self.storage, &header)?;
        let meta = list
            .iter()
            .find(|meta| meta.name == name)
            .ok_or_else(|| missing(name))?;
        check_trusted(meta)?;
        let bits = self.read_bits(meta)?;
        Ok(DirtyRanges::new(bits, meta.granularity(), self.size()))
    }

    /// Marks ranges of the disk as dirty in a bitmap: all, unless one comes as an error.
    pub(crate) fn bitmap_merge(
        &self,
        name: &str,
        ranges: impl Iterator<Item = Result<(u64, u64)>>,
    ) -> Result<()> {
        self.store_bitmaps()?;
        let meta = {
            let mut state = self.bitmaps.state();
            usable(&mut state.list, name)?.meta.clone()
        };
        let mut bits = self.read_bits(&meta)?;
        for range in ranges {
            let (start, len) = range?;
            ranges::set(&mut bits, meta.granularity_bits, start, len);
        }
        self.change_bitmaps(|list| {
            usable(list, name)?.bits = Bits::Memory(bits);
            Ok(())
        })
    }

    /// Whether the bitmaps there are can be those of a disk of `size` bytes.
    pub(super) fn check_bitmaps_of(&self, size: u64) -> Result<()> {
        match size == 0 && !self.bitmaps.state().list.is_empty() {
            true => Err(empty_disk()),
            false => Ok(()),
        }
    }

    /// Bitmaps follow the size of the disk: takes all into memory before it changes.
    pub(super) fn bitmaps_before_resize(&self) -> Result<Option<Vec<Vec<u8>>>> {
        self.store_bitmaps()?;
        let state = self.bitmaps.state();
        if state.list.is_empty() {
            return Ok(None);
        }
        let memory: u64 = state
            .list
            .iter()
            .map(|entry| entry.meta.data_bytes(self.size()))
            .sum();
        if memory > MAX_MEMORY {
            return Err(Error::unsupported(
                "the bitmaps of the image are too large to be resized",
            ));
        }
        let bits = state.list.iter().map(|entry| {
            check_trusted(&entry.meta)?;
            self.read_bits(&entry.meta)
        });
        bits.collect::<Result<Vec<_>>>().map(Some)
    }

    /// Stores them as they must be with the new size of the disk, and the size with them.
    pub(super) fn resize_with_bitmaps(&self, old: Vec<Vec<u8>>, size: u64) -> Result<()> {
        let mut state = self.bitmaps.state();
        let engine = &mut self.engine_exclusive();
        for (entry, mut bits) in state.list.iter_mut().zip(old) {
            bits.resize(entry.meta.data_bytes(size) as usize, 0);
            // Beyond the end there are no bits.
            let last = size.div_ceil(entry.meta.granularity());
            if let Some(byte) = bits.last_mut()
                && !last.is_multiple_of(8)
            {
                *byte &= (1u8 << (last % 8)) - 1;
            }
            entry.bits = Bits::Memory(bits);
        }
        self.store_list(engine, &mut state.list, Some(size))
    }
}

/// Its bitmap would have no table, and an entry of the directory without one is damaged.
fn empty_disk() -> Error {
    Error::unsupported("a disk without bytes has no bitmaps")
}

fn missing(name: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no bitmap '{name}'"))
}

fn check_trusted(meta: &Bitmap) -> Result<()> {
    if meta.in_use() {
        let message = format!(
            "Bitmap '{}' is inconsistent and cannot be used: try removing it",
            meta.name
        );
        return Err(Error::invalid(message));
    }
    Ok(())
}

fn usable<'a>(list: &'a mut [Entry], name: &str) -> Result<&'a mut Entry> {
    let entry = list
        .iter_mut()
        .find(|entry| entry.meta.name == name)
        .ok_or_else(|| missing(name))?;
    check_trusted(&entry.meta)?;
    Ok(entry)
}
