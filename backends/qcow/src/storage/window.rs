//! A part of a file in the place of a file, as raw's `offset` and `size` describe it.

use std::io;
use std::os::fd::BorrowedFd;

use crate::error::{Error, Result};
use crate::storage::buffer::{Destination, Source};
use crate::storage::extent::Extent;
use crate::storage::{Filter, Storage};

/// The error of resizing a raw image of a fixed size.
const FIXED: &str = "Cannot resize fixed-size raw disks";

/// From `offset` on, `size` bytes of the file or all that follows.
pub(crate) struct Window {
    file: Box<dyn Storage>,
    offset: u64,
    size: Option<u64>,
}

impl Window {
    pub(crate) fn new(file: Box<dyn Storage>, offset: u64, size: Option<u64>) -> Result<Self> {
        let real = file
            .len()
            .map_err(|error| Error::io("cannot find the size", error))?;
        if offset > real {
            return Err(Error::invalid(format!(
                "Offset ({offset}) cannot be greater than size of the containing file ({real})"
            )));
        }
        if let Some(size) = size {
            if size > real - offset {
                return Err(Error::invalid(format!(
                    "The sum of offset ({offset}) and size ({size}) has to be smaller or equal to the  \
                     actual size of the containing file ({real})"
                )));
            }
            // Rounded up to sectors it would reach beyond the window.
            if !size.is_multiple_of(512) {
                return Err(Error::invalid("Specified size is not multiple of 512"));
            }
        }
        Ok(Self { file, offset, size })
    }

    /// Where a range lies in the file, if it may be written.
    fn place(&self, offset: u64, len: u64) -> io::Result<u64> {
        let end = offset.checked_add(len);
        let inside = |end: u64| self.size.is_none_or(|size| end <= size);
        if !end.is_some_and(inside) {
            return Err(no_space());
        }
        offset.checked_add(self.offset).ok_or_else(no_space)
    }

    /// How many of `len` bytes at `offset` lie in the window.
    fn inside(&self, offset: u64, len: u64) -> u64 {
        match self.size {
            Some(size) => len.min(size.saturating_sub(offset)),
            None => len,
        }
    }
}

fn no_space() -> io::Error {
    io::Error::from(rustix::io::Errno::NOSPC)
}

impl Filter for Window {
    fn storage(&self) -> &dyn Storage {
        &*self.file
    }

    fn read(
        &self,
        offset: u64,
        dst: &mut dyn Destination,
        at: usize,
        len: usize,
    ) -> io::Result<()> {
        let inside = self.inside(offset, len as u64) as usize;
        if inside > 0 {
            self.file
                .read(offset.saturating_add(self.offset), dst, at, inside)?;
        }
        dst.zero(at + inside, len - inside);
        Ok(())
    }

    fn write(&self, offset: u64, src: &dyn Source, at: usize, len: usize) -> io::Result<()> {
        let place = self.place(offset, len as u64)?;
        self.file.write(place, src, at, len)
    }

    fn len(&self) -> io::Result<u64> {
        match self.size {
            Some(size) => Ok(size),
            None => Ok(self.file.len()?.saturating_sub(self.offset)),
        }
    }

    fn known_len(&self) -> u64 {
        self.inside(0, self.file.known_len().saturating_sub(self.offset))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        match self.size {
            Some(size) if size == len => Ok(()),
            Some(_) => Err(io::Error::new(io::ErrorKind::Unsupported, FIXED)),
            None => {
                let end = len.checked_add(self.offset).ok_or_else(no_space)?;
                self.file.set_len(end)
            }
        }
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        let place = self.place(offset, len)?;
        self.file.write_zeroes(place, len, unmap)
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        match self.inside(offset, len) {
            0 => Ok(()),
            inside => self
                .file
                .discard(offset.saturating_add(self.offset), inside),
        }
    }

    /// None: offsets in the file are not those in the window.
    fn file(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        let place = self.place(offset, len)?;
        self.file.allocate(place, len)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<(u64, u64)>> {
        let Some(from) = offset.checked_add(self.offset) else {
            return Ok(None);
        };
        let Some((start, end)) = self.file.next_data(from)? else {
            return Ok(None);
        };
        let bound = |at: u64| {
            let at = at.saturating_sub(self.offset);
            self.size.map_or(at, |size| at.min(size))
        };
        let (start, end) = (bound(start), bound(end));
        Ok((start < end).then_some((start, end)))
    }

    fn extent(&self, offset: u64, len: u64) -> io::Result<Option<Extent>> {
        let inside = self.inside(offset, len);
        let Some(from) = offset.checked_add(self.offset).filter(|_| inside > 0) else {
            return Ok(None);
        };
        let found = self.file.extent(from, inside)?;
        Ok(found.map(|extent| Extent {
            start: offset,
            ..extent
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::storage::host_file::HostFile;

    fn window(file: &File, offset: u64, size: Option<u64>) -> Result<Box<dyn Storage>> {
        let file = HostFile::new(file.try_clone().unwrap()).unwrap();
        Ok(Box::new(Window::new(Box::new(file), offset, size)?))
    }

    fn file() -> File {
        let file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..4096).map(|at| (at / 512) as u8).collect();
        std::os::unix::fs::FileExt::write_all_at(&file, &bytes, 0).unwrap();
        file
    }

    #[test]
    fn what_lies_outside_is_neither_read_nor_written() {
        let file = file();
        let window = window(&file, 1024, Some(1024)).unwrap();
        let mut bytes = [9u8; 2048];
        window.read(0, &mut &mut bytes[..], 0, 2048).unwrap();
        assert_eq!((bytes[0], bytes[1023], bytes[1024]), (2, 3, 0));
        let data = [7u8; 1024];
        let refused = window.write(512, &&data[..], 0, 1024).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(28));
        assert!(window.write_zeroes(1024, 1, true).is_err());
        assert!(window.set_len(512).is_err());
        window.discard(0, 4096).unwrap();
        let mut after = [9u8; 4096];
        let whole = HostFile::new(file).unwrap();
        whole.read(0, &mut &mut after[..], 0, 4096).unwrap();
        assert_eq!((after[1023], after[2048]), (1, 4));
    }

    #[test]
    fn without_a_size_it_grows_with_the_file() {
        let file = file();
        let window = window(&file, 1024, None).unwrap();
        assert_eq!(window.len().unwrap(), 3072);
        window.set_len(8192).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 9216);
    }

    #[test]
    fn a_window_lies_within_the_file_and_has_whole_sectors() {
        let file = file();
        for (offset, size) in [(4097, None), (1024, Some(3584)), (0, Some(100))] {
            assert!(window(&file, offset, size).is_err(), "{offset} {size:?}");
        }
        assert!(window(&file, 4096, Some(0)).is_ok());
    }
}
