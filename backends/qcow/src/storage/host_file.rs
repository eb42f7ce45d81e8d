//! A file or block device of the host.

mod length;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;

use crate::storage::Storage;
use crate::storage::buffer::{Destination, Source};
use length::{Length, Remains, Truncation};

/// A file or block device of the host.
#[derive(Debug)]
pub struct HostFile {
    file: Arc<File>,
    regular: bool,
    length: Length,
    /// Held during long writes. The kernel lets one thread at a time write to a file, and threads that wait for it in
    /// the kernel spin, which takes more time than the writes do.
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
    pub fn new(file: impl Into<Arc<File>>) -> io::Result<Self> {
        let file = file.into();
        let regular = file.metadata()?.is_file();
        // Not from the metadata: the size of a block device is where its end is.
        let len = rustix::fs::seek(&file, SeekFrom::End(0))?;
        Ok(Self {
            file,
            regular,
            length: Length::new(len),
            writing: Mutex::new(()),
        })
    }

    /// The file itself.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The file ends at `end`, or nothing but a hole follows there.
    fn check_end(&self, end: u64) -> io::Result<()> {
        if end >= self.length.known() {
            return Ok(());
        }
        self.check_len()
    }

    /// Whether a range can be read, of a file of which something was cut off.
    fn check_remains(&self, cut: Truncation, offset: u64, len: u64) -> io::Result<()> {
        match cut.remains(offset, len) {
            Remains::Never => Ok(()),
            Remains::Nothing => Err(cut.error()),
            Remains::Data => match rustix::fs::seek(&self.file, SeekFrom::Hole(offset)) {
                Ok(hole) if hole < offset + len => Err(cut.error()),
                Err(Errno::NXIO) => Err(cut.error()),
                _ => Ok(()),
            },
        }
    }

    /// A change is about to be made, after which a file that was cut could be longer again. A device keeps its length.
    fn check_before_change(&self) -> io::Result<()> {
        match self.regular {
            true => self.check_len(),
            false => Ok(()),
        }
    }

    /// Makes the file at least so long.
    fn extend(&self, end: u64) -> io::Result<()> {
        let wanted = || Ok((self.len()? < end).then_some(end));
        self.length
            .set(wanted, |len| Ok(rustix::fs::ftruncate(&self.file, len)?))
    }

    /// As [`Self::fallocate`], where the file then reaches as far as the range.
    fn fallocate_all(&self, flags: FallocateFlags, offset: u64, len: u64) -> Result<(), Errno> {
        let end = offset.saturating_add(len);
        let change = || self.fallocate(flags, offset, len);
        match self.regular {
            true => self.length.reach(end, change),
            false => change(),
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
        if let Some(cut) = self.length.cut() {
            self.check_remains(cut, offset, len as u64)?;
        }
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
        self.check_before_change()?;
        self.length.reach(offset.saturating_add(len as u64), || {
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
            Ok(())
        })
    }

    fn known_len(&self) -> u64 {
        self.length.known()
    }

    fn check_len(&self) -> io::Result<()> {
        self.length.check(|| self.len())
    }

    fn is_cut(&self) -> bool {
        self.length.cut().is_some()
    }

    fn sync(&self) -> io::Result<()> {
        self.check_len()?;
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
        match self.check_len() {
            // It hides nothing.
            Err(_) if self.length.cut().is_some_and(|cut| len <= cut.left()) => {}
            checked => checked?,
        }
        let set_len = |len| Ok(rustix::fs::ftruncate(&self.file, len)?);
        self.length.set(|| Ok(Some(len)), set_len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        self.check_before_change()?;
        if unmap {
            match self.fallocate(
                FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
                offset,
                len,
            ) {
                Ok(()) => {
                    return match self.regular {
                        true => self.extend(offset.saturating_add(len)),
                        false => Ok(()),
                    };
                }
                Err(error) if not_supported(error) => {}
                Err(error) => return Err(error.into()),
            }
        }
        match self.fallocate_all(FallocateFlags::ZERO_RANGE, offset, len) {
            Ok(()) => return Ok(()),
            Err(error) if not_supported(error) => {}
            Err(error) => return Err(error.into()),
        }
        // tmpfs has no ZERO_RANGE; a hole with space reserved again is the same.
        let punched = self.fallocate(
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            offset,
            len,
        );
        if punched.is_ok()
            && self
                .fallocate_all(FallocateFlags::empty(), offset, len)
                .is_ok()
        {
            return Ok(());
        }
        self.write_zero_bytes(offset, len)
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        self.check_before_change()?;
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
        self.check_before_change()?;
        match self.fallocate_all(FallocateFlags::empty(), offset, len) {
            // A file system without preallocation, or a device.
            Err(error) if not_supported(error) => self.allocate_by_writing(offset, len),
            other => Ok(other?),
        }
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<(u64, u64)>> {
        if let Some(cut) = self.length.cut() {
            // A hole may be what was cut off.
            self.check_remains(cut, offset, 1)?;
            let hole = rustix::fs::seek(&self.file, SeekFrom::Hole(offset)).unwrap_or(cut.left());
            let end = hole.min(cut.left());
            return Ok((offset < end).then_some((offset, end)));
        }
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
