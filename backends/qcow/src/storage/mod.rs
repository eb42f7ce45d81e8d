//! The file that an image lies in: positioned reads and writes, space, and durability.
//!
//! [`HostFile`](crate::HostFile) is the real one. The trait exists so that a test can record every write and sync the
//! library issues, in order, and replay any part of them.

pub(crate) mod buffer;
pub(crate) mod extent;
pub(crate) mod folder;
pub(crate) mod gate;
pub(crate) mod group_commit;
pub(crate) mod host_file;
pub(crate) mod lock;
pub(crate) mod range_lock;
pub(crate) mod scratch;
pub(crate) mod sync;
pub(crate) mod visited;
pub(crate) mod window;

use std::io;
use std::os::fd::BorrowedFd;

use crate::storage::buffer::{Destination, Source};
use crate::storage::extent::Extent;

/// A file: bytes at offsets. All methods may be called from several threads at once.
pub trait Storage: Send + Sync {
    /// Fills `dst[at..at + len]` from `offset`; what lies beyond the end of the file reads as zeroes, unless the file
    /// was longer before.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] if somebody else made the file shorter.
    fn read(&self, offset: u64, dst: &mut dyn Destination, at: usize, len: usize)
    -> io::Result<()>;

    /// The length that the file was opened with or has been given since: where a read before it meets the end of the
    /// file, somebody else made the file shorter.
    fn known_len(&self) -> u64 {
        0
    }

    /// Looks whether the file is as long as it is known to be.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] if somebody else made it shorter. From then on nothing is written to the file,
    /// and no sync of it succeeds: it could be made longer again, and what was lost would pass for zeroes.
    fn check_len(&self) -> io::Result<()> {
        Ok(())
    }

    /// Whether somebody else is known to have made the file shorter; does not look.
    fn is_cut(&self) -> bool {
        false
    }

    /// Writes `src[at..at + len]` to `offset`, growing the file if needed.
    fn write(&self, offset: u64, src: &dyn Source, at: usize, len: usize) -> io::Result<()>;

    /// Makes everything written so far durable.
    ///
    /// # Errors
    /// Also as [`Storage::check_len`].
    fn sync(&self) -> io::Result<()>;

    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Whether the length is 0.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Cuts the file or extends it with a hole.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Makes the range read as zeroes, growing the file if needed; with `unmap`, gives its space back if the host can.
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()>;

    /// Gives the space of the range back to the host if it can; the content is then zeroes or what it was.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Reserves space for the range without changing its content, growing the file if needed.
    fn allocate(&self, offset: u64, len: u64) -> io::Result<()>;

    /// The next range that may hold data at or after `offset`: its start and end. `None` if only a hole follows.
    fn next_data(&self, offset: u64) -> io::Result<Option<(u64, u64)>>;

    /// How the beginning of a range is stored, if that is known better than by where data is: the first extent.
    fn extent(&self, _offset: u64, _len: u64) -> io::Result<Option<Extent>> {
        Ok(None)
    }

    /// What identifies the file: device and inode, or zeroes.
    fn identity(&self) -> [u64; 2] {
        [0; 2]
    }

    /// The file behind this, if offsets here are offsets there: for I/O by other means than these calls.
    fn file(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Bytes the host has allocated.
    fn allocated(&self) -> io::Result<u64>;
}

/// A storage that passes to another one what it does not do by itself: as it is given here, everything.
pub trait Filter: Send + Sync {
    /// The other one.
    fn storage(&self) -> &dyn Storage;

    /// See [`Storage::read`].
    fn read(
        &self,
        offset: u64,
        dst: &mut dyn Destination,
        at: usize,
        len: usize,
    ) -> io::Result<()> {
        self.storage().read(offset, dst, at, len)
    }

    /// See [`Storage::known_len`].
    fn known_len(&self) -> u64 {
        self.storage().known_len()
    }

    /// See [`Storage::check_len`].
    fn check_len(&self) -> io::Result<()> {
        self.storage().check_len()
    }

    /// See [`Storage::is_cut`].
    fn is_cut(&self) -> bool {
        self.storage().is_cut()
    }

    /// See [`Storage::write`].
    fn write(&self, offset: u64, src: &dyn Source, at: usize, len: usize) -> io::Result<()> {
        self.storage().write(offset, src, at, len)
    }

    /// See [`Storage::sync`].
    fn sync(&self) -> io::Result<()> {
        self.storage().sync()
    }

    /// See [`Storage::len`].
    fn len(&self) -> io::Result<u64> {
        self.storage().len()
    }

    /// See [`Storage::is_empty`].
    fn is_empty(&self) -> io::Result<bool> {
        Ok(Filter::len(self)? == 0)
    }

    /// See [`Storage::set_len`].
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.storage().set_len(len)
    }

    /// See [`Storage::write_zeroes`].
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.storage().write_zeroes(offset, len, unmap)
    }

    /// See [`Storage::discard`].
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.storage().discard(offset, len)
    }

    /// See [`Storage::allocate`].
    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.storage().allocate(offset, len)
    }

    /// See [`Storage::next_data`].
    fn next_data(&self, offset: u64) -> io::Result<Option<(u64, u64)>> {
        self.storage().next_data(offset)
    }

    /// See [`Storage::extent`].
    fn extent(&self, offset: u64, len: u64) -> io::Result<Option<Extent>> {
        self.storage().extent(offset, len)
    }

    /// See [`Storage::identity`].
    fn identity(&self) -> [u64; 2] {
        self.storage().identity()
    }

    /// See [`Storage::file`].
    fn file(&self) -> Option<BorrowedFd<'_>> {
        self.storage().file()
    }

    /// See [`Storage::allocated`].
    fn allocated(&self) -> io::Result<u64> {
        self.storage().allocated()
    }
}

/// All methods, also those that have a default: what a filter does not know of reaches the storage behind it.
impl<F: Filter> Storage for F {
    fn read(
        &self,
        offset: u64,
        dst: &mut dyn Destination,
        at: usize,
        len: usize,
    ) -> io::Result<()> {
        Filter::read(self, offset, dst, at, len)
    }

    fn known_len(&self) -> u64 {
        Filter::known_len(self)
    }

    fn check_len(&self) -> io::Result<()> {
        Filter::check_len(self)
    }

    fn is_cut(&self) -> bool {
        Filter::is_cut(self)
    }

    fn write(&self, offset: u64, src: &dyn Source, at: usize, len: usize) -> io::Result<()> {
        Filter::write(self, offset, src, at, len)
    }

    fn sync(&self) -> io::Result<()> {
        Filter::sync(self)
    }

    fn len(&self) -> io::Result<u64> {
        Filter::len(self)
    }

    fn is_empty(&self) -> io::Result<bool> {
        Filter::is_empty(self)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        Filter::set_len(self, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        Filter::write_zeroes(self, offset, len, unmap)
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        Filter::discard(self, offset, len)
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        Filter::allocate(self, offset, len)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<(u64, u64)>> {
        Filter::next_data(self, offset)
    }

    fn extent(&self, offset: u64, len: u64) -> io::Result<Option<Extent>> {
        Filter::extent(self, offset, len)
    }

    fn identity(&self) -> [u64; 2] {
        Filter::identity(self)
    }

    fn file(&self) -> Option<BorrowedFd<'_>> {
        Filter::file(self)
    }

    fn allocated(&self) -> io::Result<u64> {
        Filter::allocated(self)
    }
}
