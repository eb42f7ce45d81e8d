//! What a device is to the daemon.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use vm_memory::GuestMemoryMmap;

use crate::error::RingError;
use crate::inflight::RecoveryArea;
use crate::poll::Again;
use crate::queue::Queue;
use crate::ring::Ring;
use crate::rings::Rings;
use crate::running::Turn;
use crate::warn;

/// A virtio device: everything that is not the vhost-user protocol.
///
/// A device is one part or several alike. Ring `i` belongs to part `i` modulo their number, which alone is asked to
/// [`process`](Self::process) and [`drain`](Self::drain) it and told that it [runs](Self::queue_running). Several parts are served at the
/// same time, one alone by the thread that hears the frontend. What concerns the device as a whole is asked of the first part. The calls
/// to a part come one at a time; none may wait for the guest or the frontend, nor in any way for a ring that is not its own.
pub trait Device {
    /// What can happen outside the rings: one value per descriptor of [`events`](Self::events). `std::convert::Infallible` for a device
    /// that has none.
    type Event: Copy + Send;

    /// The device's own feature bits; those of the ring and of virtio 1 are the daemon's.
    fn features(&self) -> u64;

    /// How many rings there are, of all parts together. Asked once for each frontend.
    fn queues(&self) -> u16;

    /// The configuration space, as the driver reads it.
    fn config(&self) -> Vec<u8>;

    /// The driver writes `data` at `offset` of the configuration space.
    ///
    /// # Errors
    /// Why this cannot be written.
    fn write_config(&mut self, offset: u32, data: &[u8]) -> Result<(), String> {
        let _ = data;
        Err(format!("config space is read-only at {offset}"))
    }

    /// The driver has accepted these features (all bits, not only the device's).
    fn negotiated(&mut self, features: u64) {
        let _ = features;
    }

    /// A ring has started (`true`) or stopped. Chains that were taken and not completed when it stops, because it broke, are no more:
    /// nothing may use their memory when this returns.
    fn queue_running(&mut self, index: u16, running: bool) {
        let _ = (index, running);
    }

    /// The frontend keeps this area if this process dies. The device reads what an earlier process left there before it takes a
    /// request, and does not use the area after the frontend has disconnected.
    fn set_recovery_area(&mut self, area: RecoveryArea) {
        let _ = area;
    }

    /// There may be requests: take them until there are none, or until the device can do no more for now. What is left is offered again
    /// on the next kick, event or turn.
    ///
    /// # Errors
    /// Takes the ring out of service until the driver sets it up anew. A request that merely fails is no error here.
    fn process(&mut self, queue: &mut Queue<'_>) -> Result<(), RingError>;

    /// The ring is about to stop, or the memory of the guest to change: complete or give back every chain that was taken. Nothing is to be
    /// taken; this may wait for storage.
    ///
    /// # Errors
    /// As with [`process`](Self::process).
    fn drain(&mut self, queue: &mut Queue<'_>) -> Result<(), RingError> {
        let _ = queue;
        Ok(())
    }

    /// The descriptors that the part waits for, to be watched while there is a frontend. They are watched edge-triggered: at an event,
    /// read until there is nothing left, or remember that there was more.
    fn events(&self) -> Vec<(BorrowedFd<'_>, Self::Event)> {
        Vec::new()
    }

    /// A descriptor became ready.
    ///
    /// # Errors
    /// When the device cannot go on; the program ends with this error.
    fn handle(&mut self, event: Self::Event, queues: &mut Queues<'_>) -> io::Result<()> {
        let _ = (event, queues);
        Ok(())
    }

    /// A descriptor that is watched, edge-triggered, while there is no frontend: when it becomes ready, [`look`](Self::look) is called.
    fn watched_without_frontend(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Looks whether the device could serve a frontend.
    ///
    /// # Errors
    /// When it could not, now or later; the program ends with this error.
    fn look(&self) -> io::Result<()> {
        Ok(())
    }

    /// The frontend is gone, or the program is about to end: put everything where it lasts, and be ready for another frontend.
    ///
    /// # Errors
    /// When it could not be put away.
    fn disconnected(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The rings of a part, for an event that concerns some of them.
#[derive(Debug)]
pub struct Queues<'a> {
    pub(crate) rings: &'a mut Rings,
    pub(crate) memory: &'a Arc<GuestMemoryMmap>,
    pub(crate) again: &'a mut Again,
}

impl Queues<'_> {
    /// Whether ring `index` is set up, enabled and in service.
    #[must_use]
    pub fn is_running(&self, index: u16) -> bool {
        self.rings.get(index).is_some_and(Ring::is_running)
    }

    /// Lets `serve` take and complete requests of ring `index`, and tells the driver afterwards. `false` if the ring does not run (any
    /// more); an error of `serve` takes it out of service.
    pub fn run(
        &mut self,
        index: u16,
        serve: impl FnOnce(&mut Queue<'_>) -> Result<(), RingError>,
    ) -> bool {
        let ring = self.rings.get_mut(index);
        let Some(ring) = ring.filter(|ring| ring.is_running()) else {
            return false;
        };
        match ring.turn(self.memory, serve) {
            Ok(Turn::Wait) => true,
            Ok(Turn::Again) => {
                self.again.add(index);
                true
            }
            Err(error) => {
                out_of_service(ring, &error);
                false
            }
        }
    }

    /// The same for each of the rings.
    pub fn run_each(&mut self, mut serve: impl FnMut(&mut Queue<'_>) -> Result<(), RingError>) {
        for place in 0..self.rings.len() {
            if let Some(index) = self.rings.index_at(place) {
                self.run(index, &mut serve);
            }
        }
    }
}

/// Takes `ring` out of service, with one line that says why.
pub(crate) fn out_of_service(ring: &mut Ring, error: &RingError) {
    ring.break_down();
    warn(&format!("ring {} is out of service: {error}", ring.index));
}
