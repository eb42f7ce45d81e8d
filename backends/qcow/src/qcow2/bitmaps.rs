//! Persistent dirty bitmaps of an open image: adding, removing, merging, and keeping enabled ones up to date.
//!
//! Whatever changes, the new data, table and directory are written beside the old ones, and one write of the header
//! switches. The first change of the disk marks enabled bitmaps as in use, so that after a crash nobody trusts them;
//! closing the image stores them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::address::HostOffset;
use crate::bitmap::{
    ALL_ONES, Bitmap, BitmapsExtension, encode_directory, read_directory, table_entry,
};
use crate::engine::{Engine, to_bytes};
use crate::error::{Error, ErrorKind, Result};
use crate::extension::kind;
use crate::feature;
use crate::qcow2::Qcow2;
use crate::report::BitmapInfo;

/// Bits of bitmaps held in memory at most, in bytes.
const MAX_MEMORY: u64 = 64 << 20;

/// The bitmaps of an open image.
#[derive(Debug, Default)]
pub(crate) struct Bitmaps {
    /// Some bitmap is enabled: changes of the disk must be told. Known without a lock.
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
    /// Its bits, if they are not those in the file.
    bits: Option<Vec<u8>>,
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

/// Sets the bits for a range of the disk.
fn set_range(bits: &mut [u8], granularity_bits: u8, start: u64, len: u64) {
    if len == 0 {
        return;
    }
    for bit in start >> granularity_bits..=(start + len - 1) >> granularity_bits {
        if let Some(byte) = bits.get_mut((bit / 8) as usize) {
            *byte |= 1 << (bit % 8);
        }
    }
}

impl Qcow2 {
    /// Reads the directory of an image about to be written.
    pub(super) fn load_bitmaps(&self) -> Result<()> {
        let header = self.engine().header.clone();
        let list = read_directory(&*self.storage, &header)?;
        let mut state = self.bitmaps.state();
        state.list = list
            .into_iter()
            .map(|meta| Entry { meta, bits: None })
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
        let header = self.engine().header.clone();
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
            if let Some(bits) = &mut entry.bits {
                set_range(bits, entry.meta.granularity_bits, start, len);
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
            // One that does not fit stays marked as in use: it is lost, and everybody knows.
            if memory <= MAX_MEMORY {
                entry.bits = Some(self.read_bits(&entry.meta)?);
            }
            marked.meta.set_in_use(true);
        }
        self.store_list(&mut self.engine(), &mut marked, None)?;
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
            if entry.bits.is_some() {
                entry.meta.set_in_use(false);
            }
        }
        self.store_list(&mut self.engine(), &mut state.list, None)?;
        state.active = false;
        self.bitmaps.note(&state);
        Ok(())
    }

    fn read_bits(&self, meta: &Bitmap) -> Result<Vec<u8>> {
        let engine = self.engine();
        let geometry = *engine.geometry();
        drop(engine);
        let mut bits = vec![0u8; meta.data_bytes(self.size()) as usize];
        for (chunk, entry) in bits
            .chunks_mut(self.cluster_size as usize)
            .zip(meta.table(&*self.storage)?)
        {
            match table_entry(&geometry, entry)? {
                Some(offset) => {
                    let len = chunk.len();
                    self.storage
                        .read(offset, &mut &mut chunk[..], 0, len)
                        .map_err(|error| Error::io("cannot read a bitmap", error))?;
                }
                None if entry & ALL_ONES != 0 => chunk.fill(0xff),
                None => {}
            }
        }
        Ok(bits)
    }

    /// Writes bits to new clusters; returns the table.
    fn write_bits(&self, engine: &mut Engine, bits: &[u8]) -> Result<Vec<u64>> {
        let mut table = Vec::new();
        for chunk in bits.chunks(self.cluster_size as usize) {
            if chunk.iter().all(|byte| *byte == 0) {
                table.push(0);
                continue;
            }
            let (host, _) = self.run_locked(engine, |engine| engine.allocate(1))?;
            let mut cluster = chunk.to_vec();
            cluster.resize(self.cluster_size as usize, 0);
            self.write_file(host.0, &cluster)?;
            table.push(host.0);
        }
        Ok(table)
    }

    /// Makes `list` the bitmaps of the image: new bits of some, and the directory, beside the old; then the header; then the
    /// old ones are freed. The same write of the header may change the size of the disk.
    fn store_list(&self, engine: &mut Engine, list: &mut [Entry], size: Option<u64>) -> Result<()> {
        engine.check_usable()?;
        let old_extension = BitmapsExtension::of(&engine.header)?;
        let old = read_directory(&*self.storage, &engine.header)?;
        for entry in list.iter_mut() {
            let Some(bits) = &entry.bits else { continue };
            let table = self.write_bits(engine, bits)?;
            let clusters = engine.geometry().clusters_for(table.len() as u64 * 8);
            let host = match clusters {
                0 => HostOffset(0),
                clusters => self.run_locked(engine, |engine| engine.allocate_exactly(clusters))?,
            };
            let mut bytes = to_bytes(&table);
            bytes.resize((clusters * self.cluster_size) as usize, 0);
            self.write_file(host.0, &bytes)?;
            entry.meta.table_offset = host.0;
            entry.meta.table_size = table.len() as u32;
            entry.bits = None;
        }
        let metas: Vec<Bitmap> = list.iter().map(|entry| entry.meta.clone()).collect();
        let mut header = engine.header.clone();
        header.size = size.unwrap_or(header.size);
        if metas.is_empty() {
            header.set_extension(kind::BITMAPS, None);
            header.autoclear &= !feature::BITMAPS;
        } else {
            let extension = self.write_directory(engine, &metas)?;
            header.set_extension(kind::BITMAPS, Some(extension.encode()));
            header.autoclear |= feature::BITMAPS;
        }
        let leaves = self.runs_left(engine, old_extension, &old, &metas)?;
        self.commit(engine, true)?;
        // What the commit did to the header must not be undone.
        header.incompatible = engine.header.incompatible;
        self.update_header(engine, header)?;
        for (host, clusters) in leaves {
            let free = self.run_locked(engine, |engine| engine.dereference_run(host, clusters))?;
            self.give_back(engine, &free);
        }
        Ok(())
    }

    fn write_directory(&self, engine: &mut Engine, metas: &[Bitmap]) -> Result<BitmapsExtension> {
        let mut bytes = encode_directory(metas);
        let size = bytes.len() as u64;
        let clusters = engine.geometry().clusters_for(size);
        let host = self.run_locked(engine, |engine| engine.allocate_exactly(clusters))?;
        bytes.resize((clusters * self.cluster_size) as usize, 0);
        self.write_file(host.0, &bytes)?;
        engine.register_metadata("bitmap directory", host, clusters)?;
        Ok(BitmapsExtension {
            count: metas.len() as u32,
            directory_size: size,
            directory_offset: host.0,
        })
    }

    /// What the old directory used and the new one does not, itself included.
    fn runs_left(
        &self,
        engine: &mut Engine,
        extension: Option<BitmapsExtension>,
        old: &[Bitmap],
        new: &[Bitmap],
    ) -> Result<Vec<(HostOffset, u64)>> {
        let geometry = *engine.geometry();
        let mut runs: Vec<(HostOffset, u64)> = Vec::new();
        for bitmap in old {
            if bitmap.table_size == 0
                || new
                    .iter()
                    .any(|kept| kept.table_offset == bitmap.table_offset)
            {
                continue;
            }
            for entry in bitmap.table(&*self.storage)? {
                if let Some(offset) = table_entry(&geometry, entry)? {
                    runs.push((HostOffset(offset), 1));
                }
            }
            runs.push((
                HostOffset(bitmap.table_offset),
                geometry.clusters_for(u64::from(bitmap.table_size) * 8),
            ));
        }
        for (host, clusters) in &runs {
            let last = HostOffset(host.0 + clusters * geometry.cluster_size() - 1);
            if let Err(error) = engine.check_apart("a bitmap", *host, last) {
                self.signal_corruption(engine, &error);
                return Err(error);
            }
        }
        if let Some(extension) = extension {
            runs.push((
                HostOffset(extension.directory_offset),
                geometry.clusters_for(extension.directory_size),
            ));
        }
        Ok(runs)
    }

    /// Changes the list of bitmaps and stores it.
    fn change_bitmaps<T>(&self, change: impl FnOnce(&mut Vec<Entry>) -> Result<T>) -> Result<T> {
        let _guard = self.ranges.exclusive(0..u64::MAX);
        if self.engine().header.version < 3 {
            return Err(Error::unsupported(
                "Cannot store dirty bitmaps in qcow2 v2 files",
            ));
        }
        // What was recorded so far goes to the file first, so that there is one truth.
        self.store_bitmaps()?;
        let mut state = self.bitmaps.state();
        let mut list = state.list.clone();
        let value = change(&mut list)?;
        self.store_list(&mut self.engine(), &mut list, None)?;
        state.list = list;
        self.bitmaps.note(&state);
        Ok(value)
    }

    pub(crate) fn bitmap_add(&self, name: &str, granularity: u64, enabled: bool) -> Result<()> {
        let mut meta = Bitmap::new(name, granularity, enabled)?;
        let size = self.size();
        self.change_bitmaps(|list| {
            if list.iter().any(|entry| entry.meta.name == name) {
                return Err(Error::invalid(format!("Bitmap already exists: {name}")));
            }
            if list.len() >= 65535 {
                return Err(Error::invalid(
                    "Maximum number of persistent bitmaps is already reached",
                ));
            }
            let bits = vec![0; meta.data_bytes(size) as usize];
            meta.table_size = 0;
            list.push(Entry {
                meta,
                bits: Some(bits),
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
        let size = self.size();
        self.change_bitmaps(|list| {
            let entry = usable(list, name)?;
            entry.bits = Some(vec![0; entry.meta.data_bytes(size) as usize]);
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
    pub(crate) fn bitmap_ranges(&self, name: &str) -> Result<Vec<(u64, u64)>> {
        if self.writable && !self.for_check {
            self.store_bitmaps()?;
        }
        let header = self.engine().header.clone();
        let list = read_directory(&*self.storage, &header)?;
        let meta = list
            .iter()
            .find(|meta| meta.name == name)
            .ok_or_else(|| missing(name))?;
        check_trusted(meta)?;
        let bits = self.read_bits(meta)?;
        let (size, granularity) = (self.size(), meta.granularity());
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for (index, byte) in (0u64..).zip(&bits) {
            for bit in (0..8).filter(|bit| byte >> bit & 1 == 1) {
                let start = (index * 8 + bit) * granularity;
                if start >= size {
                    continue;
                }
                let len = granularity.min(size - start);
                match ranges.last_mut() {
                    Some(last) if last.0 + last.1 == start => last.1 += len,
                    _ => ranges.push((start, len)),
                }
            }
        }
        Ok(ranges)
    }

    /// Marks ranges of the disk as dirty in a bitmap.
    pub(crate) fn bitmap_merge(&self, name: &str, ranges: &[(u64, u64)]) -> Result<()> {
        self.store_bitmaps()?;
        let meta = {
            let mut state = self.bitmaps.state();
            usable(&mut state.list, name)?.meta.clone()
        };
        let mut bits = self.read_bits(&meta)?;
        for (start, len) in ranges {
            set_range(&mut bits, meta.granularity_bits, *start, *len);
        }
        self.change_bitmaps(|list| {
            usable(list, name)?.bits = Some(bits);
            Ok(())
        })
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
        let engine = &mut self.engine();
        for (entry, mut bits) in state.list.iter_mut().zip(old) {
            bits.resize(entry.meta.data_bytes(size) as usize, 0);
            // Beyond the end there are no bits.
            let last = size.div_ceil(entry.meta.granularity());
            if let Some(byte) = bits.last_mut()
                && !last.is_multiple_of(8)
            {
                *byte &= (1u8 << (last % 8)) - 1;
            }
            entry.bits = Some(bits);
        }
        self.store_list(engine, &mut state.list, Some(size))
    }
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
