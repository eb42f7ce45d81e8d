//! A file that is filled from nothing and left to the kernel to write out: `-t unsafe`, which is `convert`'s default.

use std::fs::File;
use std::io;

use qcow::{Destination, HostFile, Source, Storage};
use rustix::fs::FallocateFlags;

/// As [`HostFile`], and `sync` does nothing.
#[derive(Debug)]
pub(crate) struct Unsynced {
    file: HostFile,
    /// Space is reserved before it is written.
    reserves: bool,
}

/// ext4 counts the blocks it will need page by page while data comes in. Reserved by one call beforehand, they cost
/// nothing: a write then takes about half the time. Other file systems reserve ahead of a writer by themselves.
const EXT4: u32 = 0xef53;

/// Writes of this length are worth a reservation.
const LARGE: usize = 64 << 10;

impl Unsynced {
    pub(crate) fn new(file: File) -> io::Result<Self> {
        let on_ext4 = rustix::fs::fstatfs(&file)?.f_type as u32 == EXT4;
        Ok(Self {
            reserves: on_ext4 && file.metadata()?.is_file(),
            file: HostFile::new(file)?,
        })
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
        self.file.read(offset, dst, at, len)
    }

    fn write(&self, offset: u64, src: &dyn Source, at: usize, len: usize) -> io::Result<()> {
        if self.reserves && len >= LARGE {
            // Should there be no space, the write itself says so.
            let _ = rustix::fs::fallocate(
                self.file.file(),
                FallocateFlags::KEEP_SIZE,
                offset,
                len as u64,
            );
        }
        self.file.write(offset, src, at, len)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn known_len(&self) -> u64 {
        self.file.known_len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.file.write_zeroes(offset, len, unmap)
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.file.discard(offset, len)
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.file.allocate(offset, len)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<(u64, u64)>> {
        self.file.next_data(offset)
    }

    fn allocated(&self) -> io::Result<u64> {
        self.file.allocated()
    }
}
