//! A file that is filled from nothing and left to the kernel to write out: `-t unsafe`, which is `convert`'s default.

use std::fs::File;
use std::io;
use std::sync::Arc;

use qcow::{Filter, HostFile, Source, Storage};
use rustix::fs::FallocateFlags;

/// As [`HostFile`], and `sync` only looks whether all is there.
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
    pub(crate) fn new(file: Arc<File>) -> io::Result<Self> {
        let on_ext4 = rustix::fs::fstatfs(&file)?.f_type as u32 == EXT4;
        Ok(Self {
            reserves: on_ext4 && file.metadata()?.is_file(),
            file: HostFile::new(file)?,
        })
    }
}

impl Filter for Unsynced {
    fn storage(&self) -> &dyn Storage {
        &self.file
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
        self.file.check_len()
    }
}
