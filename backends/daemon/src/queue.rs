//! A running ring as the device sees it.

use std::sync::Arc;

use vm_memory::GuestMemoryMmap;

use crate::chain::Chain;
use crate::error::RingError;
use crate::running::Running;

/// A running ring, during one turn: one call to the device, in which it may take as many requests as the ring is long.
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

    /// Guest memory, in which the buffers of chains are. To use it after this turn, keep a clone.
    #[must_use]
    pub fn memory(&self) -> &'a Arc<GuestMemoryMmap> {
        self.memory
    }

    /// Whether the turn is over: no more can be taken before the next turn, which comes without a kick.
    #[must_use]
    pub fn turn_is_over(&self) -> bool {
        self.running.turn_is_over()
    }

    /// Takes the next request. Those that a process left in flight when it died come first, in their old order. Returns
    /// `None` when there is none, or when the turn is over; the daemon calls again in either case.
    ///
    /// # Errors
    /// When the ring or the chain is invalid. Return the error to the daemon, which takes the ring out of service.
    pub fn pop(&mut self) -> Result<Option<Chain>, RingError> {
        let Some((head, resubmitted)) = self.running.next_head(self.memory)? else {
            return Ok(None);
        };
        self.running.chain(self.memory, head, resubmitted).map(Some)
    }

    /// Call this when the available chains, all taken or given back, are too few: the next turn comes when the driver
    /// adds one.
    pub fn want_more(&mut self) {
        self.running.want_more();
    }

    /// Puts a request back that was taken and not executed, as if it had not been taken. Of several, put the last taken
    /// back first.
    ///
    /// The ring's next turn then has to come from an event of the device, since the driver is not asked for a kick;
    /// unless the device calls [`want_more`](Self::want_more). The request still counts for this turn.
    ///
    /// # Errors
    /// When the in-flight record cannot be written.
    pub fn give_back(&mut self, chain: Chain) -> Result<(), RingError> {
        self.running.give_back(chain)
    }

    /// Puts a request into the used ring, with `written` bytes of its writable buffers filled. The driver is notified
    /// at the end of the turn.
    ///
    /// # Errors
    /// When the used ring cannot be written.
    pub fn complete(&mut self, chain: Chain, written: u32) -> Result<(), RingError> {
        self.complete_together([(chain, written)])
    }

    /// The same for several requests, which the driver sees all at once, as a packet in merged buffers requires (virtio
    /// 1.2, 5.1.6.3.2).
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
