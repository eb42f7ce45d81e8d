//! A request that is under way, and the operations it is made of.

use std::sync::Arc;

use bulkhead_daemon::{Chain, RingError};
use qcow::{Flush, Plan};
use vm_memory::GuestMemoryMmap;

use crate::memory::GuestBuffers;
use crate::request::{Request, Status};

/// A request that was taken.
pub(crate) struct Slot {
    pub(crate) request: Request,
    pub(crate) memory: Arc<GuestMemoryMmap>,
    /// With the threads while one of them does the request.
    pub(crate) chain: Option<Chain>,
    /// Keeps the parts where they are.
    pub(crate) _plan: Option<Plan>,
    /// It is a flush, done in the ring.
    pub(crate) flush: Option<Flush>,
    /// The threads are to do it when its parts have ended.
    pub(crate) again: bool,
    /// Parts that are still under way.
    pub(crate) parts: usize,
    pub(crate) status: Status,
    pub(crate) stage: Stage,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Stage {
    /// Another one must end first.
    Waiting,
    Ring,
    Threads,
}

/// An operation in the ring: a part of a request.
#[derive(Clone, Copy)]
pub(crate) struct Operation {
    pub(crate) slot: usize,
    pub(crate) kind: Kind,
    pub(crate) file: u32,
    /// Where in the file.
    pub(crate) offset: u64,
    /// Where in the data of the request, and how long.
    pub(crate) at: u32,
    pub(crate) length: u32,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    Read,
    Write,
    /// A write that fails where it had to wait.
    WriteAtOnce,
    Sync,
}

impl Slot {
    /// Fills a part of what is read with zeroes.
    pub(crate) fn zero(&self, at: u32, length: u32) -> Result<(), RingError> {
        let Some(chain) = &self.chain else {
            return Ok(());
        };
        let mut buffers = GuestBuffers::new(&self.memory, chain.writable(), at, length)?;
        qcow::Destination::zero(&mut buffers, 0, length as usize);
        Ok(())
    }
}
