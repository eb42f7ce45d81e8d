//! An image in the place of a file: what it shows as its disk is the file that another image lies in.

use std::io;
use std::sync::Arc;

use crate::error::Error;
use crate::formats::backing_disk::BackingDisk as _;
use crate::image::Image;
use crate::options::Preallocation;
use crate::storage::Storage;
use crate::storage::buffer::{Destination, Source};
use crate::storage::extent::Extent;

/// Disks have whole sectors.
const SECTOR: u64 = 512;

fn failed(error: Error) -> io::Error {
    match error.raw_os_error() {
        Some(number) => io::Error::from_raw_os_error(number),
        None => io::Error::other(error),
    }
}

fn too_long() -> io::Error {
    io::Error::from(rustix::io::Errno::FBIG)
}

impl Image {
    /// Makes the disk long enough for a range, which nothing but the image in it decides about.
    fn reach(&self, offset: u64, len: u64) -> io::Result<()> {
        let end = offset.checked_add(len).ok_or_else(too_long)?;
        if end <= self.virtual_size() {
            return Ok(());
        }
        self.set_size(end)
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        let size = size.checked_next_multiple_of(SECTOR).ok_or_else(too_long)?;
        self.resize(size, Preallocation::Off).map_err(failed)
    }

    /// How much of a range lies on the disk.
    fn within(&self, offset: u64, len: u64) -> u64 {
        len.min(self.virtual_size().saturating_sub(offset))
    }
}

/// So that one image can lie in another: `Image::open_storage(Box::new(Arc::new(outer)), …)`.
impl Storage for Arc<Image> {
    fn read(
        &self,
        offset: u64,
        dst: &mut dyn Destination,
        at: usize,
        len: usize,
    ) -> io::Result<()> {
        self.read_part(offset, dst, at, len).map_err(failed)
    }

    fn write(&self, offset: u64, src: &dyn Source, at: usize, len: usize) -> io::Result<()> {
        self.reach(offset, len as u64)?;
        let mut bytes = vec![0; len];
        src.get(at, &mut bytes);
        self.write_at(offset, &bytes).map_err(failed)
    }

    fn sync(&self) -> io::Result<()> {
        self.flush().map_err(failed)
    }

    fn check_len(&self) -> io::Result<()> {
        self.check_files().map_err(failed)
    }

    fn is_cut(&self) -> bool {
        Image::is_cut(self)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.virtual_size())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.set_size(len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.reach(offset, len)?;
        Image::write_zeroes(self, offset, len, unmap).map_err(failed)
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        match self.within(offset, len) {
            0 => Ok(()),
            inside => Image::discard(self, offset, inside).map_err(failed),
        }
    }

    fn allocate(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Err(io::Error::from(io::ErrorKind::Unsupported))
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<(u64, u64)>> {
        let mut at = offset;
        while at < self.virtual_size() {
            let extent = self.map(at, self.virtual_size() - at).map_err(failed)?;
            let end = at + extent.length.max(1);
            if !extent.zero {
                return Ok(Some((at, end)));
            }
            at = end;
        }
        Ok(None)
    }

    fn extent(&self, offset: u64, len: u64) -> io::Result<Option<Extent>> {
        match self.within(offset, len) {
            0 => Ok(None),
            inside => self.map(offset, inside).map(Some).map_err(failed),
        }
    }

    fn allocated(&self) -> io::Result<u64> {
        Ok(self.info().map_err(failed)?.actual_size)
    }
}
