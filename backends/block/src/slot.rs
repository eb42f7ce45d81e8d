//! A slot: one request in flight.

use std::sync::Arc;

use bulkhead_daemon::{Chain, RingError};
use qcow::{Flush, Plan};
use vm_memory::GuestMemoryMmap;

use crate::memory::GuestBuffers;
use crate::request::{Request, Status};

/// A request in flight.
pub(crate) struct Slot {
    pub(crate) request: Request,
    pub(crate) memory: Arc<GuestMemoryMmap>,
    /// `None` while the thread pool has it.
    pub(crate) chain: Option<Chain>,
    /// While this lives, the image moves or frees none of the extents that the operations use.
    pub(crate) _held_extents: Option<Plan>,
    /// Set if the request is a flush that io_uring executes.
    pub(crate) flush: Option<Flush>,
    /// The thread pool has to execute the request anew when its operations have ended.
    pub(crate) redo: bool,
    /// Operations that have not ended.
    pub(crate) parts: usize,
    pub(crate) status: Status,
    pub(crate) stage: Stage,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Stage {
    /// An earlier request must complete first.
    Waiting,
    /// Its operations are in the io_uring.
    Ring,
    /// The thread pool has it, or is about to get it.
    Pool,
}

impl Slot {
    /// Fills a part of the data that is read with zeroes.
    pub(crate) fn zero(&self, at: u32, length: u32) -> Result<(), RingError> {
        let Some(chain) = &self.chain else {
            return Ok(());
        };
        let mut buffers = GuestBuffers::new(&self.memory, chain.writable(), at, length)?;
        qcow::Destination::zero(&mut buffers, 0, length as usize);
        Ok(())
    }
}
