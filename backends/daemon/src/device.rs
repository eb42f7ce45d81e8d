//! The trait of a device.

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

/// A part of a virtio device: everything that is not the vhost-user protocol.
///
/// A device has one part, or several of the same type. Ring `i` belongs to part `i` modulo their number: only that part
/// has to [`process`](Self::process) and [`drain`](Self::drain) it, and is notified when it [starts or
/// stops](Self::queue_running). Several parts are served at the same time, each by a thread of its own; a single part
/// is served by the main thread. The calls that concern the whole device go to the first part. The calls to a part come
/// one at a time. None may wait for the guest, for the frontend, or for a ring of another part.
pub trait Device {
    /// The events of the part's own descriptors: one value for each descriptor of [`events`](Self::events).
    /// `std::convert::Infallible` for a device that has none.
    type Event: Copy + Send;

    /// The feature bits of the device type. The daemon adds those of the rings and of virtio 1.
    fn features(&self) -> u64;

    /// How many rings all parts have together. Called once for each frontend.
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

    /// A ring has started (`true`) or stopped. If it stopped because it is broken, there may be chains that were taken
    /// and not completed: the device drops them, and nothing may use their memory when this returns.
    fn queue_running(&mut self, index: u16, running: bool) {
        let _ = (index, running);
    }

    /// The frontend keeps this area if this process dies. The device reads what an earlier process left there before it
    /// takes a request, and does not use the area after the frontend has disconnected.
    fn set_recovery_area(&mut self, area: RecoveryArea) {
        let _ = area;
    }

    /// Takes requests until there are none, or until the device can take no more for now. The daemon calls this again
    /// for the rest on the next kick, event or turn.
    ///
    /// # Errors
    /// What breaks the ring: it is out of service until the frontend sets it up again. A request that fails is no error
    /// here.
    fn process(&mut self, queue: &mut Queue<'_>) -> Result<(), RingError>;

    /// Completes or gives back every chain that was taken, since the ring is about to stop, or guest memory to change.
    /// Takes no chain. This may wait for storage.
    ///
    /// # Errors
    /// As with [`process`](Self::process).
    fn drain(&mut self, queue: &mut Queue<'_>) -> Result<(), RingError> {
        let _ = queue;
        Ok(())
    }

    /// The descriptors that the daemon watches for the part while there is a frontend. They are watched edge-triggered:
    /// at an event, read until nothing is left, or remember that there is more.
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

    /// A descriptor that is watched, edge-triggered, while there is no frontend: when it becomes ready,
    /// [`look`](Self::look) is called.
    fn watched_without_frontend(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Checks whether the device could serve a frontend.
    ///
    /// # Errors
    /// Why it could not; the program ends with this error.
    fn look(&self) -> io::Result<()> {
        Ok(())
    }

    /// The frontend has disconnected, or the program is about to end: make everything durable, and be ready for another
    /// frontend.
    ///
    /// # Errors
    /// When it could not be made durable.
    fn disconnected(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The rings of a part, for a device that handles an event.
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

    /// Has `serve` take and complete requests of ring `index`, then notifies the driver. An error of `serve` takes the
    /// ring out of service. Returns `false` if the ring does not run, or no longer.
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

    /// The same for each ring.
    pub fn run_each(&mut self, mut serve: impl FnMut(&mut Queue<'_>) -> Result<(), RingError>) {
        for place in 0..self.rings.len() {
            if let Some(index) = self.rings.index_at(place) {
                self.run(index, &mut serve);
            }
        }
    }
}

/// Takes `ring` out of service and warns of the reason.
pub(crate) fn out_of_service(ring: &mut Ring, error: &RingError) {
    ring.break_down();
    warn(&format!("ring {} is out of service: {error}", ring.index));
}
