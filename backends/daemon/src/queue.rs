//! What a device sees of a ring that runs.

use std::sync::Arc;

use vm_memory::GuestMemoryMmap;

use crate::chain::Chain;
use crate::error::RingError;
use crate::running::Running;

/// A ring that runs, during one turn of it.
#[derive(Debug)]
pub struct Queue<'a> {
    pub(crate) index: u16,
    pub(crate) running: &'a mut Running,
    pub(crate) memory: &'a Arc<GuestMemoryMmap>,
}

impl<'a> Queue<'a> {
    /// Which ring of the device this is.
    #[must_use]
    pub fn index(&self) -> u16 {
        self.index
    }

    /// The guest's memory, where the buffers of chains are. Whoever uses it beyond this turn keeps a clone.
    #[must_use]
    pub fn memory(&self) -> &'a Arc<GuestMemoryMmap> {
        self.memory
    }

    /// Whether it is the turn of another ring: nothing more can be taken before the next turn, which comes without a kick.
    #[must_use]
    pub fn turn_is_over(&self) -> bool {
        self.running.turn_is_over()
    }

    /// Takes the next request: those left by a process that died come first, in their old order. `None` when there is none, or when it
    /// is the turn of another ring; the daemon comes back in either case.
    ///
    /// # Errors
    /// When the ring or the chain makes no sense; hand it on and the ring is taken out of service.
    pub fn pop(&mut self) -> Result<Option<Chain>, RingError> {
        let Some((head, resubmitted)) = self.running.next_head(self.memory)? else {
            return Ok(None);
        };
        self.running.chain(self.memory, head, resubmitted).map(Some)
    }

    /// Says that what is there, all of which is taken or given back, is not enough: the next turn comes when the driver adds to it.
    pub fn want_more(&mut self) {
        self.running.want_more();
    }

    /// Puts back a request that was taken and not touched, as if it had not been taken. Of several, the last taken goes back first.
    ///
    /// The device then comes back by an event of its own: the driver is not asked to tell of more, for there is enough; unless
    /// [`want_more`](Self::want_more) says otherwise. What was taken counts for the turn all the same.
    ///
    /// # Errors
    /// When the in-flight record cannot be kept.
    pub fn give_back(&mut self, chain: Chain) -> Result<(), RingError> {
        self.running.give_back(chain)
    }

    /// Tells the driver that a request is done and that `written` bytes of its writable buffers were filled. The notification follows
    /// at the end of the turn.
    ///
    /// # Errors
    /// When the used ring cannot be written.
    pub fn complete(&mut self, chain: Chain, written: u32) -> Result<(), RingError> {
        self.complete_together([(chain, written)])
    }

    /// The same for several requests, which the driver sees all at once: as a packet in merged buffers wants it (virtio 1.2, 5.1.6.3.2).
    ///
    /// # Errors
    /// When the used ring cannot be written.
    pub fn complete_together(
        &mut self,
        chains: impl IntoIterator<Item = (Chain, u32)>,
    ) -> Result<(), RingError> {
        self.running.complete(self.memory, chains)
    }
}
