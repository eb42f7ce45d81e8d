//! The guest's buffers as a source or destination of the image library, without a copy on the way.

use std::io;
use std::os::fd::BorrowedFd;

use bulkhead_daemon::{Buffers, RingError, iovec};
use qcow::{Destination, Source};
use vm_memory::{Bytes, GuestMemoryMmap, VolatileSlice};

/// A range of the bytes of a chain's buffers.
pub(crate) struct GuestBuffers<'m> {
    slices: Vec<VolatileSlice<'m>>,
    length: usize,
}

impl<'m> GuestBuffers<'m> {
    /// The `length` bytes of `buffers` from `offset` on.
    pub(crate) fn new(
        memory: &'m GuestMemoryMmap,
        buffers: Buffers<'_>,
        offset: u32,
        length: u32,
    ) -> Result<Self, RingError> {
        Ok(Self {
            slices: buffers.slices(memory, offset, length)?,
            length: length as usize,
        })
    }

    /// The slices that hold `length` bytes from `at` on.
    fn part(&self, at: usize, length: usize) -> Vec<VolatileSlice<'m>> {
        let (mut skip, mut left) = (at, length);
        let mut parts = Vec::with_capacity(self.slices.len());
        for slice in &self.slices {
            if left == 0 {
                break;
            }
            if skip >= slice.len() {
                skip -= slice.len();
                continue;
            }
            let take = left.min(slice.len() - skip);
            // It lies within the slice.
            if let Ok(part) = slice.subslice(skip, take) {
                parts.push(part);
            }
            skip = 0;
            left -= take;
        }
        parts
    }
}

impl Destination for GuestBuffers<'_> {
    fn len(&self) -> usize {
        self.length
    }

    fn read_from(
        &mut self,
        at: usize,
        len: usize,
        file: BorrowedFd<'_>,
        offset: u64,
    ) -> io::Result<usize> {
        iovec::read_at(file, &self.part(at, len), offset)
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        let mut rest = bytes;
        for part in self.part(at, bytes.len()) {
            let (now, later) = rest.split_at(part.len().min(rest.len()));
            part.copy_from(now);
            rest = later;
        }
    }

    fn zero(&mut self, at: usize, len: usize) {
        const ZEROES: [u8; 4096] = [0; 4096];
        for part in self.part(at, len) {
            let mut done = 0;
            while done < part.len() {
                let now = ZEROES.len().min(part.len() - done);
                // It lies within the part.
                let _ = part.write_slice(&ZEROES[..now], done);
                done += now;
            }
        }
    }
}

impl Source for GuestBuffers<'_> {
    fn len(&self) -> usize {
        self.length
    }

    fn write_to(
        &self,
        at: usize,
        len: usize,
        file: BorrowedFd<'_>,
        offset: u64,
    ) -> io::Result<usize> {
        iovec::write_at(file, &self.part(at, len), offset)
    }

    fn get(&self, at: usize, bytes: &mut [u8]) {
        let mut rest = bytes;
        for part in self.part(at, rest.len()) {
            let copied = part.copy_to(rest);
            rest = rest.split_at_mut(copied).1;
        }
    }
}
