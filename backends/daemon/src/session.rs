//! One frontend's use of the device: its memory, rings and features, as its [messages](crate::messages) set them.

use vhost::vhost_user::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use virtio_bindings::virtio_config::{VIRTIO_F_RING_RESET, VIRTIO_F_VERSION_1};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use crate::device::Device;
use crate::inflight::InflightArea;
use crate::memory::Memory;
use crate::post::{Borrowed, Post};
use crate::ring::Ring;
use crate::sigbus;
use crate::worker::{Start, Worker};

const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
pub(crate) const PROTOCOL_FEATURES: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// What every device gets from the daemon.
pub(crate) const FEATURES: u64 = VERSION_1
    | EVENT_IDX
    | PROTOCOL_FEATURES
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_F_RING_RESET;

pub(crate) fn protocol_features() -> VhostUserProtocolFeatures {
    VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::CONFIG
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::INFLIGHT_SHMFD
        | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
        | VhostUserProtocolFeatures::RESET_DEVICE
}

pub(crate) struct Session<'s, 'd, D: Device> {
    /// The parts of the device.
    posts: &'s [Post<'d, D>],
    first: &'s Post<'d, D>,
    /// How many rings there are.
    pub(crate) rings: u16,
    pub(crate) memory: Memory,
    pub(crate) inflight: Option<InflightArea>,
    /// As accepted by the driver, once it has.
    pub(crate) features: Option<u64>,
    pub(crate) protocol_features: u64,
}

impl<'s, 'd, D: Device> Session<'s, 'd, D> {
    /// For a device of one part at least.
    pub(crate) fn new(first: &'s Post<'d, D>, posts: &'s [Post<'d, D>], rings: u16) -> Self {
        Self {
            posts,
            first,
            rings,
            memory: Memory::default(),
            inflight: None,
            features: None,
            protocol_features: 0,
        }
    }

    pub(crate) fn replies_to_all(&self) -> bool {
        self.protocol_features & VhostUserProtocolFeatures::REPLY_ACK.bits() != 0
    }

    /// Ends the session: no descriptor of the frontend stays open, and the device has put everything away.
    pub(crate) fn close(&mut self) -> std::io::Result<()> {
        for mut worker in self.workers() {
            worker.close();
        }
        self.memory = Memory::default();
        self.inflight = None;
        let closed = self.first().part.disconnected();
        sigbus::sweep();
        closed
    }

    /// The part that speaks for the device.
    pub(crate) fn first(&self) -> Borrowed<'s, 'd, D> {
        self.first.borrow()
    }

    /// The parts, one after the other. The others go on meanwhile: what one has under way may have to wait for them.
    pub(crate) fn workers(&self) -> impl Iterator<Item = Borrowed<'s, 'd, D>> + use<'s, 'd, D> {
        self.posts.iter().map(Post::borrow)
    }

    /// The part that ring `index` belongs to, and the index as it knows it.
    pub(crate) fn worker(&self, index: u32) -> Result<(Borrowed<'s, 'd, D>, u16), String> {
        let ring = u16::try_from(index).ok().filter(|&ring| ring < self.rings);
        let worker = |ring: u16| self.posts.get(usize::from(ring) % self.posts.len());
        match ring.and_then(|ring| Some((worker(ring)?.borrow(), ring))) {
            Some(found) => Ok(found),
            None => Err(format!("there is no ring {index}, only {}", self.rings)),
        }
    }

    /// Has `set` say something about ring `index`, which must be stopped. Gives the part that it belongs to.
    pub(crate) fn set_stopped(
        &self,
        index: u32,
        set: impl FnOnce(&mut Ring),
    ) -> Result<Borrowed<'s, 'd, D>, String> {
        let (mut worker, number) = self.worker(index)?;
        match worker.ring(number) {
            Some(ring) if ring.is_stopped() => set(ring),
            _ => return Err(format!("ring {index} is in use")),
        }
        Ok(worker)
    }

    /// Starts what can be started of a part.
    pub(crate) fn start_rings_of(&self, worker: &mut Worker<'d, D>) {
        let Some(features) = self.features.filter(|_| !self.memory.is_empty()) else {
            return;
        };
        worker.start_rings(&Start {
            memory: &self.memory,
            inflight: self.inflight.as_ref(),
            modern: features & VERSION_1 != 0,
            event_idx: features & EVENT_IDX != 0,
        });
    }

    /// Has all parts use the memory there is now.
    pub(crate) fn memory_changed(&self) {
        for mut worker in self.workers() {
            worker.set_memory(self.memory.guest());
            self.start_rings_of(&mut worker);
        }
    }

    /// The same where there is only more of it.
    pub(crate) fn memory_grew(&self) {
        for mut worker in self.workers() {
            worker.extend_memory(self.memory.guest());
            self.start_rings_of(&mut worker);
        }
    }
}
