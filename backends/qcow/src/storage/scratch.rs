//! A file whose writes stay in memory.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::storage::buffer::{Destination, Source};
use crate::storage::extent::Extent;
use crate::storage::{Filter, Storage};

const BLOCK: u64 = 4096;

/// The file, and the blocks that differ from it.
pub(crate) struct Scratch {
    file: Arc<dyn Storage>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    blocks: BTreeMap<u64, Vec<u8>>,
    /// The end of the longest write.
    end: u64,
}

impl Scratch {
    pub(crate) fn new(file: Arc<dyn Storage>) -> Self {
        Self {
            file,
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Filter for Scratch {
    fn storage(&self) -> &dyn Storage {
        &*self.file
    }

    fn read(
        &self,
        offset: u64,
        dst: &mut dyn Destination,
        at: usize,
        len: usize,
    ) -> io::Result<()> {
        self.file.read(offset, dst, at, len)?;
        let state = self.state();
        let end = offset.saturating_add(len as u64);
        for (start, block) in state.blocks.range(offset / BLOCK * BLOCK..end) {
            let (from, to) = (offset.max(*start), end.min(start + BLOCK));
            let range = (from - start) as usize..(to - start) as usize;
            dst.put(
                at + (from - offset) as usize,
                block.get(range).unwrap_or_default(),
            );
        }
        Ok(())
    }

    fn write(&self, offset: u64, src: &dyn Source, at: usize, len: usize) -> io::Result<()> {
        let end = offset
            .checked_add(len as u64)
            .ok_or(io::ErrorKind::FileTooLarge)?;
        let mut state = self.state();
        for start in (offset / BLOCK * BLOCK..end).step_by(BLOCK as usize) {
            let block = match state.blocks.entry(start) {
                Entry::Occupied(block) => block.into_mut(),
                Entry::Vacant(place) => {
                    let mut block = vec![0; BLOCK as usize];
                    self.file
                        .read(start, &mut &mut block[..], 0, BLOCK as usize)?;
                    place.insert(block)
                }
            };
            let (from, to) = (offset.max(start), end.min(start + BLOCK));
            let range = (from - start) as usize..(to - start) as usize;
            if let Some(part) = block.get_mut(range) {
                src.get(at + (from - offset) as usize, part);
            }
        }
        state.end = state.end.max(end);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.len()?.max(self.state().end))
    }

    fn set_len(&self, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn write_zeroes(&self, _offset: u64, _len: u64, _unmap: bool) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn discard(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    fn allocate(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<(u64, u64)>> {
        let found = self.file.next_data(offset)?;
        let state = self.state();
        let block = state.blocks.range(offset / BLOCK * BLOCK..).next();
        let ours = block.map(|(start, _)| (offset.max(*start), start + BLOCK));
        Ok(match (found, ours) {
            (Some(found), Some(ours)) => Some(found.min(ours)),
            (found, ours) => found.or(ours),
        })
    }

    /// The blocks that differ have no place there.
    fn extent(&self, _offset: u64, _len: u64) -> io::Result<Option<Extent>> {
        Ok(None)
    }
}
