//! A file whose data is left to the kernel to write out, for `-t unsafe`, which is `convert`'s default.

use std::fs::File;
use std::io;

use qcow::{Destination, HostFile, Source, Storage};

/// As [`HostFile`], and `sync` does nothing.
#[derive(Debug)]
pub(crate) struct Unsynced(HostFile);

impl Unsynced {
    pub(crate) fn new(file: File) -> io::Result<Self> {
        HostFile::new(file).map(Self)
    }
}

impl Storage for Unsynced {
    fn read(
        &self,
        offset: u64,
        dst: &mut dyn Destination,
        at: usize,
        len: usize,
    ) -> io::Result<()> {
        self.0.read(offset, dst, at, len)
    }

    fn write(&self, offset: u64, src: &dyn Source, at: usize, len: usize) -> io::Result<()> {
        self.0.write(offset, src, at, len)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.0.write_zeroes(offset, len, unmap)
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.0.discard(offset, len)
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.0.allocate(offset, len)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<(u64, u64)>> {
        self.0.next_data(offset)
    }

    fn allocated(&self) -> io::Result<u64> {
        self.0.allocated()
    }
}
