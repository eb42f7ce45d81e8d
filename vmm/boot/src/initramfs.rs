//! The initramfs, at the end of RAM.

use std::fs::File;
use std::io::{Seek, SeekFrom};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::layout::{Layout, PAGE_SIZE};
use crate::{Error, Kernel};

/// Where an initramfs is in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Initramfs {
    /// Its guest physical address.
    pub start: u64,
    /// Its length in bytes.
    pub len: u64,
}

impl Initramfs {
    /// Loads `file` at the highest address that `kernel` accepts in RAM below the hole.
    ///
    /// # Errors
    /// When it is empty, cannot be read, or does not fit beside the kernel.
    pub fn load(
        memory: &GuestMemoryMmap,
        layout: &Layout,
        kernel: &Kernel,
        file: &mut File,
    ) -> Result<Self, Error> {
        let size = file.seek(SeekFrom::End(0)).map_err(Error::Read)?;
        file.rewind().map_err(Error::Read)?;
        if size == 0 {
            return Err(Error::EmptyInitramfs);
        }
        let limit = layout.low_ram_end().min(kernel.initramfs_limit());
        let start = limit
            .checked_sub(size)
            .map(|start| start / PAGE_SIZE * PAGE_SIZE)
            .filter(|start| *start >= kernel.end())
            .ok_or(Error::InitramfsTooLarge {
                size,
                room: limit.saturating_sub(kernel.end()),
                limit,
            })?;
        let len = usize::try_from(size).map_err(|_| Error::NoRoom)?;
        memory
            .read_exact_volatile_from(GuestAddress(start), file, len)
            .map_err(|e| Error::Read(std::io::Error::other(e.to_string())))?;
        Ok(Self { start, len: size })
    }
}
