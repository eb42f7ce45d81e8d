//! The extent size hint of a file: the unit in which XFS reserves space for it.

#![allow(
    unsafe_code,
    reason = "two ioctls that neither the standard library nor rustix has"
)]

use std::io;
use std::os::fd::AsFd;

use rustix::ioctl::{Getter, Opcode, Setter, ioctl, opcode};

/// `struct fsxattr` of `linux/fs.h`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct FileAttributes {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    cow_extent_size: u32,
    padding: [u8; 8],
}

/// `FS_IOC_FSGETXATTR` and `FS_IOC_FSSETXATTR`.
const GET: Opcode = opcode::read::<FileAttributes>(b'X', 31);
const SET: Opcode = opcode::write::<FileAttributes>(b'X', 32);

/// `FS_XFLAG_EXTSIZE`.
const HAS_EXTENT_SIZE: u32 = 0x0000_0800;

fn attributes(file: impl AsFd) -> io::Result<FileAttributes> {
    // SAFETY: the ioctl fills one `struct fsxattr`, of which every value is valid.
    let attributes = unsafe { ioctl(file, Getter::<GET, FileAttributes>::new()) };
    Ok(attributes?)
}

/// The hint in bytes, if the file has one.
pub(crate) fn hint(file: impl AsFd) -> Option<u32> {
    let hint = attributes(file).ok()?.extent_size;
    (hint > 0).then_some(hint)
}

/// Sets the hint; 0 removes it.
///
/// # Errors
/// When the file system does not support hints, or not this size.
pub(crate) fn set_hint(file: impl AsFd, bytes: u32) -> io::Result<()> {
    let mut attributes = attributes(&file)?;
    attributes.flags |= HAS_EXTENT_SIZE;
    attributes.extent_size = bytes;
    // SAFETY: the ioctl reads one `struct fsxattr` and keeps nothing of it.
    let set = unsafe { ioctl(file, Setter::<SET, FileAttributes>::new(attributes)) };
    Ok(set?)
}
