//! Raw images: the file is the disk.

mod format;

use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::options::Preallocation;
use crate::storage::Storage;
use crate::storage::buffer::{Destination, Source};
use crate::storage::extent::Extent;

pub(super) use format::ENTRY;

/// A raw image.
pub(crate) struct Raw {
    storage: Arc<dyn Storage>,
    /// Where the disk begins in the file.
    start: u64,
    size: std::sync::atomic::AtomicU64,
    discard: bool,
}

fn failed(what: &'static str) -> impl Fn(io::Error) -> Error {
    move |error| Error::io(what, error)
}

impl Raw {
    pub(crate) fn new(storage: Arc<dyn Storage>, start: u64, discard: bool) -> Result<Self> {
        let size = storage.len().map_err(failed("cannot find the size"))?;
        Ok(Self {
            storage,
            start,
            size: size.into(),
            discard,
        })
    }

    pub(crate) fn size(&self) -> u64 {
        self.size.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Where a byte of the disk lies in the file.
    pub(crate) fn place(&self, offset: u64) -> u64 {
        offset.saturating_add(self.start)
    }

    pub(crate) fn read(
        &self,
        offset: u64,
        dst: &mut dyn Destination,
        at: usize,
        len: usize,
    ) -> Result<()> {
        self.storage
            .read(offset, dst, at, len)
            .map_err(failed("read error"))
    }

    pub(crate) fn write(&self, offset: u64, src: &dyn Source, at: usize, len: usize) -> Result<()> {
        self.storage
            .write(offset, src, at, len)
            .map_err(failed("write error"))
    }

    pub(crate) fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> Result<()> {
        self.storage
            .write_zeroes(offset, len, may_unmap && self.discard)
            .map_err(failed("write error"))
    }

    pub(crate) fn discard(&self, offset: u64, len: u64) -> Result<()> {
        if !self.discard {
            return Ok(());
        }
        self.storage
            .discard(offset, len)
            .map_err(failed("discard error"))
    }

    pub(crate) fn flush(&self) -> Result<()> {
        self.storage.sync().map_err(failed("flush error"))
    }

    /// Length of the first extent at `offset`, and whether it holds data.
    pub(crate) fn status(&self, offset: u64, len: u64) -> Result<(u64, bool)> {
        let end = offset
            .checked_add(len)
            .ok_or_else(|| Error::new(ErrorKind::OutOfRange, "range overflows"))?;
        match self
            .storage
            .next_data(offset)
            .map_err(failed("cannot find holes"))?
        {
            Some((start, data_end)) if start <= offset => {
                Ok((data_end.min(end).saturating_sub(offset).max(1), true))
            }
            Some((start, _)) => Ok((start.min(end) - offset, false)),
            None => Ok((len, false)),
        }
    }

    /// The first extent at `offset`: the storage's own where it has one, else data or a hole.
    pub(crate) fn map(&self, offset: u64, len: u64, path: &Path) -> Result<Extent> {
        let known = self.storage.extent(offset, len);
        if let Some(extent) = known.map_err(failed("cannot find holes"))? {
            return Ok(Extent { depth: 0, ..extent });
        }
        let (length, data) = self.status(offset, len)?;
        Ok(Extent {
            start: offset,
            length,
            depth: 0,
            present: true,
            zero: !data,
            data,
            compressed: false,
            missing: false,
            offset: Some(self.place(offset)),
            file: Some(path.to_path_buf()),
        })
    }

    pub(crate) fn resize(&self, size: u64) -> Result<()> {
        let is_device = || Error::unsupported("Cannot resize device files");
        self.storage
            .set_len(size)
            .map_err(|error| match (error.raw_os_error(), error.kind()) {
                (Some(_), _) => Error::io("cannot resize", error),
                (None, io::ErrorKind::StorageFull) => is_device(),
                // The storage itself says that it cannot.
                (None, _) => Error::unsupported(error.to_string()),
            })?;
        if self.storage.len().map_err(failed("cannot find the size"))? != size {
            // It is longer than an image on it has to be, and stays that.
            return Err(is_device());
        }
        self.size.store(size, std::sync::atomic::Ordering::Relaxed);
        Ok(())
    }
}

/// Stores the first block of an otherwise empty raw file: who opens it later with direct I/O finds out by it which
/// alignment the host needs. QEMU does the same.
pub(crate) fn allocate_first_block(storage: &dyn Storage, size: u64) -> std::io::Result<()> {
    const BLOCK: u64 = 4096;
    let len = if size < BLOCK { 512 } else { BLOCK };
    let len = len.min(size) as usize;
    let zeroes = [0u8; BLOCK as usize];
    storage.write(0, &&zeroes[..], 0, len)
}

/// Reserves the space of a raw file from `start` to `end`.
pub(crate) fn preallocate(
    storage: &dyn Storage,
    start: u64,
    end: u64,
    preallocation: Preallocation,
) -> Result<()> {
    if end <= start {
        return Ok(());
    }
    let failed = |error| Error::io("cannot preallocate", error);
    match preallocation {
        Preallocation::Off => Ok(()),
        Preallocation::Metadata => Err(Error::unsupported(
            "raw images have no metadata to preallocate",
        )),
        Preallocation::Falloc => storage.allocate(start, end - start).map_err(failed),
        Preallocation::Full => {
            let zeroes = vec![0u8; 1 << 20];
            let mut at = start;
            while at < end {
                let len = (end - at).min(zeroes.len() as u64);
                storage
                    .write(at, &&zeroes[..], 0, len as usize)
                    .map_err(failed)?;
                at += len;
            }
            // As QEMU: what was allocated is there.
            storage.sync().map_err(failed)
        }
    }
}
