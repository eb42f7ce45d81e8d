//! A new file that is not synced: `-t unsafe`, which is `convert`'s default.

use std::fs::File;
use std::io;
use std::sync::Arc;

use qcow::{Filter, HostFile, Source, Storage};
use rustix::fs::FallocateFlags;

/// As [`HostFile`], but `sync` only checks the length of the file.
#[derive(Debug)]
pub(crate) struct Unsynced {
    file: HostFile,
    /// Space is reserved before each large write.
    reserves: bool,
}

/// ext4 reserves the blocks of a write page by page. Reserving them with one call before takes half the time. Other
/// file systems reserve ahead themselves.
const EXT4: u32 = 0xef53;

/// Shortest write for which space is reserved.
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
            // If there is no space, the write returns the error.
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
