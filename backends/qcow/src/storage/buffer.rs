//! Memory that image data is read into and written from.
//!
//! The library never needs a `&mut [u8]` of the caller's memory: it asks a [`Destination`] to fill itself from a file,
//! or a [`Source`] to write itself to one. Memory that other parties change at any time (the RAM of a guest) implements
//! these two traits with `preadv`/`pwritev` on raw iovecs and needs no copy. Slices and `IoSlice` lists implement them
//! here.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;

/// Memory that can be filled with data of an image.
///
/// `at` and `len` always lie within [`Destination::len`].
pub trait Destination {
    /// Length in bytes.
    fn len(&self) -> usize;

    /// Whether the length is 0.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads up to `len` bytes from `file` at `offset` to position `at`; returns how many were read, 0 at the end of
    /// the file.
    fn read_from(
        &mut self,
        at: usize,
        len: usize,
        file: BorrowedFd<'_>,
        offset: u64,
    ) -> io::Result<usize>;

    /// Copies `bytes` to position `at`.
    fn put(&mut self, at: usize, bytes: &[u8]);

    /// Fills `len` bytes from position `at` with zeroes.
    fn zero(&mut self, at: usize, len: usize);

    /// The `len` bytes from position `at` to work in, where this is memory of this process alone and they lie in a row.
    fn slice_mut(&mut self, _at: usize, _len: usize) -> Option<&mut [u8]> {
        None
    }
}

/// Memory that holds data for an image.
///
/// `at` and `len` always lie within [`Source::len`].
pub trait Source {
    /// Length in bytes.
    fn len(&self) -> usize;

    /// Whether the length is 0.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes up to `len` bytes from position `at` to `file` at `offset`; returns how many were written.
    fn write_to(
        &self,
        at: usize,
        len: usize,
        file: BorrowedFd<'_>,
        offset: u64,
    ) -> io::Result<usize>;

    /// Copies the bytes from position `at` into `bytes`.
    fn get(&self, at: usize, bytes: &mut [u8]);
}

impl Destination for &mut [u8] {
    fn len(&self) -> usize {
        <[u8]>::len(self)
    }

    fn read_from(
        &mut self,
        at: usize,
        len: usize,
        file: BorrowedFd<'_>,
        offset: u64,
    ) -> io::Result<usize> {
        Ok(rustix::io::pread(file, &mut self[at..at + len], offset)?)
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn zero(&mut self, at: usize, len: usize) {
        self[at..at + len].fill(0);
    }

    fn slice_mut(&mut self, at: usize, len: usize) -> Option<&mut [u8]> {
        self.get_mut(at..at + len)
    }
}

impl Source for &[u8] {
    fn len(&self) -> usize {
        <[u8]>::len(self)
    }

    fn write_to(
        &self,
        at: usize,
        len: usize,
        file: BorrowedFd<'_>,
        offset: u64,
    ) -> io::Result<usize> {
        Ok(rustix::io::pwrite(file, &self[at..at + len], offset)?)
    }

    fn get(&self, at: usize, bytes: &mut [u8]) {
        bytes.copy_from_slice(&self[at..at + bytes.len()]);
    }
}

/// At most this many buffers go into one `preadv` or `pwritev` (IOV_MAX of Linux).
const MAX_IOVECS: usize = 1024;

/// The parts of the slices `lens` that make up `at..at + len`: index of the slice, start and end within it.
fn parts(lens: impl Iterator<Item = usize>, at: usize, len: usize) -> Vec<(usize, usize, usize)> {
    let (mut skip, mut left, mut out) = (at, len, Vec::new());
    for (index, slice_len) in lens.enumerate() {
        if left == 0 {
            break;
        }
        if skip >= slice_len {
            skip -= slice_len;
            continue;
        }
        let take = left.min(slice_len - skip);
        out.push((index, skip, skip + take));
        left -= take;
        skip = 0;
    }
    out
}

impl Destination for &mut [IoSliceMut<'_>] {
    fn len(&self) -> usize {
        self.iter().map(|slice| slice.len()).sum()
    }

    fn read_from(
        &mut self,
        at: usize,
        len: usize,
        file: BorrowedFd<'_>,
        offset: u64,
    ) -> io::Result<usize> {
        let parts = parts(self.iter().map(|slice| slice.len()), at, len);
        let mut wanted = parts.into_iter().peekable();
        let mut views = Vec::new();
        for (index, slice) in self.iter_mut().enumerate() {
            if let Some((_, start, end)) = wanted.next_if(|part| part.0 == index) {
                views.push(IoSliceMut::new(&mut slice[start..end]));
            }
            if views.len() == MAX_IOVECS {
                break;
            }
        }
        Ok(rustix::io::preadv(file, &mut views, offset)?)
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        let mut from = 0;
        for (index, start, end) in parts(self.iter().map(|slice| slice.len()), at, bytes.len()) {
            self[index][start..end].copy_from_slice(&bytes[from..from + end - start]);
            from += end - start;
        }
    }

    fn zero(&mut self, at: usize, len: usize) {
        for (index, start, end) in parts(self.iter().map(|slice| slice.len()), at, len) {
            self[index][start..end].fill(0);
        }
    }
}

impl Source for &[IoSlice<'_>] {
    fn len(&self) -> usize {
        self.iter().map(|slice| slice.len()).sum()
    }

    fn write_to(
        &self,
        at: usize,
        len: usize,
        file: BorrowedFd<'_>,
        offset: u64,
    ) -> io::Result<usize> {
        let views: Vec<IoSlice<'_>> = parts(self.iter().map(|slice| slice.len()), at, len)
            .into_iter()
            .take(MAX_IOVECS)
            .map(|(index, start, end)| IoSlice::new(&self[index][start..end]))
            .collect();
        Ok(rustix::io::pwritev(file, &views, offset)?)
    }

    fn get(&self, at: usize, bytes: &mut [u8]) {
        let mut to = 0;
        for (index, start, end) in parts(self.iter().map(|slice| slice.len()), at, bytes.len()) {
            bytes[to..to + end - start].copy_from_slice(&self[index][start..end]);
            to += end - start;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_slices_cover_exactly_the_range_and_skip_empty_slices() {
        assert_eq!(
            parts([3, 0, 4, 5].into_iter(), 2, 6),
            vec![(0, 2, 3), (2, 0, 4), (3, 0, 1)]
        );
        assert_eq!(parts([3].into_iter(), 3, 0), vec![]);
    }

    #[test]
    fn put_and_get_cross_slice_boundaries() {
        let (mut a, mut b) = ([0u8; 3], [0u8; 3]);
        let mut slices = [IoSliceMut::new(&mut a), IoSliceMut::new(&mut b)];
        (&mut slices[..]).put(2, &[7, 8]);
        let views = [IoSlice::new(&a), IoSlice::new(&b)];
        let mut out = [0; 4];
        Source::get(&&views[..], 1, &mut out);
        assert_eq!(out, [0, 7, 8, 0]);
    }
}
