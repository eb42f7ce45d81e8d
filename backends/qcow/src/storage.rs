//! The file under an image, as the engine sees it: positioned reads and writes, space, and durability.
//!
//! [`HostFile`] is the real one. The trait exists so that a test can record every write and sync the library issues, in
//! order, and replay any part of them.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;

use crate::buffer::{Destination, Source};
use crate::extent::Extent;

/// A file: bytes at offsets. All methods may be called from several threads at once.
pub trait Storage: Send + Sync {
    /// Fills `dst[at..at + len]` from `offset`; what lies beyond the end of the file reads as zeroes, unless the file was longer before.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] if somebody else made the file shorter.
    fn read(&self, offset: u64, dst: &mut dyn Destination, at: usize, len: usize)
    -> io::Result<()>;

    /// The length that the file was opened with or has been given since: where a read before it meets the end of the file, somebody else
    /// made the file shorter.
    fn known_len(&self) -> u64 {
        0
    }

    /// Writes `src[at..at + len]` to `offset`, growing the file if needed.
    fn write(&self, offset: u64, src: &dyn Source, at: usize, len: usize) -> io::Result<()>;

    /// Makes everything written so far durable.
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

    /// What tells the file from others.
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

/// A file or block device of the host.
#[derive(Debug)]
pub struct HostFile {
    file: File,
    regular: bool,
    /// See [`Storage::known_len`].
    known_len: AtomicU64,
    /// Whoever writes much. The kernel lets one thread at a time write to a file; those that wait for it in there spin,
    /// and take more time from each other than the writes take.
    writing: Mutex<()>,
}

/// Writes of this length take turns.
const LONG_WRITE: usize = 64 << 10;

/// A file has space for all of such a piece, or for none of it.
const BLOCK: usize = 4096;

/// Zeroes written at a time where the host cannot do it by itself.
const ZERO_CHUNK: usize = 1 << 20;

impl HostFile {
    /// Takes an open file.
    pub fn new(file: File) -> io::Result<Self> {
        let regular = file.metadata()?.is_file();
        // Not from the metadata: the size of a block device is where its end is.
        let len = rustix::fs::seek(&file, SeekFrom::End(0))?;
        Ok(Self {
            file,
            regular,
            known_len: len.into(),
            writing: Mutex::new(()),
        })
    }

    /// The file itself.
    pub fn file(&self) -> &File {
        &self.file
    }

    fn has_reached(&self, offset: u64, len: u64) {
        let end = offset.saturating_add(len);
        if end > self.known_len.load(Ordering::Relaxed) {
            self.known_len.fetch_max(end, Ordering::Relaxed);
        }
    }

    /// The file ends at `end`, or nothing but a hole follows there.
    fn check_end(&self, end: u64) -> io::Result<()> {
        let known = self.known_len.load(Ordering::Relaxed);
        if end >= known {
            return Ok(());
        }
        // Unless it has become longer meanwhile.
        match self.len()? {
            len if len < self.known_len.load(Ordering::Relaxed) => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("the file has become shorter: it had {known} bytes and has {len}"),
            )),
            _ => Ok(()),
        }
    }

    fn fallocate(&self, flags: FallocateFlags, offset: u64, len: u64) -> Result<(), Errno> {
        loop {
            match rustix::fs::fallocate(&self.file, flags, offset, len) {
                Err(Errno::INTR) => {}
                other => return other,
            }
        }
    }

    /// Makes the host keep space for a range by writing zeroes where nothing else is. A device has all of its space.
    fn allocate_by_writing(&self, offset: u64, len: u64) -> io::Result<()> {
        let (end, old) = (offset.saturating_add(len), self.len()?);
        if !self.regular {
            return match end <= old {
                true => Ok(()),
                false => Err(Errno::NOSPC.into()),
            };
        }
        // Not from where data is said to be: those that know no preallocation often know no holes, either.
        let mut at = offset;
        let mut piece = vec![0u8; ZERO_CHUNK.min(usize::try_from(len).unwrap_or(ZERO_CHUNK))];
        while at < end.min(old) {
            let part = piece
                .len()
                .min(usize::try_from(end.min(old) - at).unwrap_or(usize::MAX));
            let piece = piece.get_mut(..part).unwrap_or_default();
            self.read(at, &mut &mut *piece, 0, part)?;
            for (place, block) in (at..).step_by(BLOCK).zip(piece.chunks(BLOCK)) {
                if block.iter().all(|byte| *byte == 0) {
                    self.write(place, &block, 0, block.len())?;
                }
            }
            at += part as u64;
        }
        self.write_zero_bytes(at, end.saturating_sub(at))
    }

    fn write_zero_bytes(&self, offset: u64, len: u64) -> io::Result<()> {
        let zeroes = vec![0u8; ZERO_CHUNK.min(usize::try_from(len).unwrap_or(ZERO_CHUNK))];
        let mut done = 0;
        while done < len {
            let part = usize::try_from(len - done)
                .unwrap_or(ZERO_CHUNK)
                .min(zeroes.len());
            self.write(offset + done, &&zeroes[..], 0, part)?;
            done += part as u64;
        }
        Ok(())
    }
}

fn not_supported(error: Errno) -> bool {
    matches!(
        error,
        Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::NODEV
    )
}

impl Storage for HostFile {
    fn read(
        &self,
        offset: u64,
        dst: &mut dyn Destination,
        at: usize,
        len: usize,
    ) -> io::Result<()> {
        let mut done = 0;
        while done < len {
            match dst.read_from(
                at + done,
                len - done,
                self.file.as_fd(),
                offset + done as u64,
            ) {
                Ok(0) => {
                    self.check_end(offset + done as u64)?;
                    dst.zero(at + done, len - done);
                    break;
                }
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, src: &dyn Source, at: usize, len: usize) -> io::Result<()> {
        let _turn = (self.regular && len >= LONG_WRITE)
            .then(|| self.writing.lock().unwrap_or_else(PoisonError::into_inner));
        let mut done = 0;
        while done < len {
            match src.write_to(
                at + done,
                len - done,
                self.file.as_fd(),
                offset + done as u64,
            ) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.has_reached(offset, len as u64);
        Ok(())
    }

    fn known_len(&self) -> u64 {
        self.known_len.load(Ordering::Relaxed)
    }

    fn sync(&self) -> io::Result<()> {
        loop {
            match rustix::fs::fdatasync(&self.file) {
                Err(Errno::INTR) => {}
                other => return Ok(other?),
            }
        }
    }

    fn len(&self) -> io::Result<u64> {
        // Not fstat: the size of a block device is where its end is.
        Ok(rustix::fs::seek(&self.file, SeekFrom::End(0))?)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        if !self.regular {
            return if len <= self.len()? {
                Ok(())
            } else {
                Err(io::Error::new(
                    io::ErrorKind::StorageFull,
                    "Cannot grow device files",
                ))
            };
        }
        if len < self.known_len() {
            // Whoever reads meanwhile finds an end where one is to be.
            self.known_len.store(len, Ordering::Relaxed);
            return Ok(rustix::fs::ftruncate(&self.file, len)?);
        }
        rustix::fs::ftruncate(&self.file, len)?;
        self.has_reached(0, len);
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        if unmap {
            match self.fallocate(
                FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
                offset,
                len,
            ) {
                Ok(()) => {
                    if self.regular && self.len()? < offset + len {
                        self.set_len(offset + len)?;
                    }
                    return Ok(());
                }
                Err(error) if not_supported(error) => {}
                Err(error) => return Err(error.into()),
            }
        }
        match self.fallocate(FallocateFlags::ZERO_RANGE, offset, len) {
            Ok(()) => {
                self.has_reached(offset, len);
                return Ok(());
            }
            Err(error) if not_supported(error) => {}
            Err(error) => return Err(error.into()),
        }
        // tmpfs has no ZERO_RANGE; a hole with space reserved again is the same.
        let punched = self.fallocate(
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            offset,
            len,
        );
        if punched.is_ok() && self.fallocate(FallocateFlags::empty(), offset, len).is_ok() {
            self.has_reached(offset, len);
            return Ok(());
        }
        self.write_zero_bytes(offset, len)
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        match self.fallocate(
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            offset,
            len,
        ) {
            Err(error) if !not_supported(error) => Err(error.into()),
            _ => Ok(()),
        }
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        match self.fallocate(FallocateFlags::empty(), offset, len) {
            // A file system without preallocation, or a device.
            Err(error) if not_supported(error) => self.allocate_by_writing(offset, len)?,
            other => other?,
        }
        if self.regular {
            self.has_reached(offset, len);
        }
        Ok(())
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<(u64, u64)>> {
        let start = match rustix::fs::seek(&self.file, SeekFrom::Data(offset)) {
            Ok(start) => start,
            Err(Errno::NXIO) => {
                self.check_end(offset)?;
                return Ok(None);
            }
            // No holes known here: everything is data.
            Err(error) if not_supported(error) => {
                let end = self.len()?;
                return Ok((offset < end).then_some((offset, end)));
            }
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(&self.file, SeekFrom::Hole(start))?;
        Ok(Some((start, end)))
    }

    fn identity(&self) -> [u64; 2] {
        rustix::fs::fstat(&self.file).map_or([0; 2], |stat| [stat.st_dev, stat.st_ino])
    }

    fn file(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }

    fn allocated(&self) -> io::Result<u64> {
        let stat = rustix::fs::fstat(&self.file)?;
        Ok(u64::try_from(stat.st_blocks).unwrap_or(0) * 512)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_beyond_the_end_are_zeroes_and_zeroing_grows_the_file() {
        let storage = HostFile::new(tempfile::tempfile().unwrap()).unwrap();
        storage.write(0, &&b"abcdef"[..], 1, 3).unwrap();
        let mut buf = [9u8; 5];
        storage.read(1, &mut &mut buf[..], 0, 5).unwrap();
        assert_eq!(&buf, b"cd\0\0\0");
        for unmap in [false, true] {
            let end = storage.len().unwrap() + 5000;
            storage.write_zeroes(1, end - 1, unmap).unwrap();
            assert_eq!(storage.len().unwrap(), end);
        }
        storage.read(0, &mut &mut buf[..], 0, 5).unwrap();
        assert_eq!(&buf, b"b\0\0\0\0");
    }

    #[test]
    fn holes_are_found() {
        let storage = HostFile::new(tempfile::tempfile().unwrap()).unwrap();
        storage.set_len(1 << 20).unwrap();
        assert_eq!(storage.next_data(0).unwrap(), None);
        storage
            .write(512 << 10, &&[1u8; 4096][..], 0, 4096)
            .unwrap();
        assert_eq!(
            storage.next_data(0).unwrap(),
            Some((512 << 10, (512 << 10) + 4096))
        );
    }
}
