//! A medium with something around each access: what fails, and what takes its time.

use std::io;
use std::sync::Arc;

use qcow::{Destination, Source, Storage};

use super::medium::Medium;

/// What is done to the medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    /// Zeroes, too.
    Write,
    Discard,
    Sync,
}

type Guard = dyn Fn(Access, &mut dyn FnMut() -> io::Result<()>) -> io::Result<()> + Send + Sync;

/// The medium; clones are the same one.
#[derive(Clone)]
pub struct Around {
    pub medium: Medium,
    guard: Arc<Guard>,
}

impl Around {
    /// `guard` gets each access and does it, or does not.
    pub fn new<F>(medium: Medium, guard: F) -> Self
    where
        F: Fn(Access, &mut dyn FnMut() -> io::Result<()>) -> io::Result<()> + Send + Sync + 'static,
    {
        Self {
            medium,
            guard: Arc::new(guard),
        }
    }
}

impl Storage for Around {
    fn read(
        &self,
        offset: u64,
        dst: &mut dyn Destination,
        at: usize,
        len: usize,
    ) -> io::Result<()> {
        (self.guard)(Access::Read, &mut || self.medium.read(offset, dst, at, len))
    }

    fn write(&self, offset: u64, src: &dyn Source, at: usize, len: usize) -> io::Result<()> {
        (self.guard)(Access::Write, &mut || {
            self.medium.write(offset, src, at, len)
        })
    }

    fn sync(&self) -> io::Result<()> {
        (self.guard)(Access::Sync, &mut || self.medium.sync())
    }

    fn len(&self) -> io::Result<u64> {
        self.medium.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.medium.set_len(len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        (self.guard)(Access::Write, &mut || {
            self.medium.write_zeroes(offset, len, unmap)
        })
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        (self.guard)(Access::Discard, &mut || self.medium.discard(offset, len))
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.medium.allocate(offset, len)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<(u64, u64)>> {
        self.medium.next_data(offset)
    }

    fn allocated(&self) -> io::Result<u64> {
        self.medium.allocated()
    }
}
