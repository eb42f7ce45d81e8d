//! One frontend's use of the device: its memory, rings and features, as its [messages](crate::messages) set them.

use vhost::vhost_user::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use virtio_bindings::virtio_config::{VIRTIO_F_RING_RESET, VIRTIO_F_VERSION_1};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use crate::device::Device;
use crate::inflight::InflightArea;
use crate::memory::Memory;
use crate::queue_group::{QueueGroup, Start};
use crate::ring::Ring;
use crate::sigbus;
use crate::worker::{Paused, Worker};

const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
pub(crate) const PROTOCOL_FEATURES: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// The feature bits that the daemon adds to every device's.
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
    /// One for each part of the device.
    workers: &'s [Worker<'d, D>],
    first: &'s Worker<'d, D>,
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
    pub(crate) fn new(first: &'s Worker<'d, D>, workers: &'s [Worker<'d, D>], rings: u16) -> Self {
        Self {
            workers,
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
        for mut group in self.groups() {
            group.close();
        }
        self.memory = Memory::default();
        self.inflight = None;
        let closed = self.first().part.disconnected();
        sigbus::sweep();
        closed
    }

    /// The first group, whose part answers for the whole device.
    pub(crate) fn first(&self) -> Paused<'s, 'd, D> {
        self.first.pause()
    }

    /// Pauses the groups one after the other. The others go on meanwhile: a request of this group may have to wait for
    /// one of theirs.
    pub(crate) fn groups(&self) -> impl Iterator<Item = Paused<'s, 'd, D>> + use<'s, 'd, D> {
        self.workers.iter().map(Worker::pause)
    }

    /// Pauses the group that ring `index` belongs to. Also returns the index, checked.
    pub(crate) fn group(&self, index: u32) -> Result<(Paused<'s, 'd, D>, u16), String> {
        let ring = u16::try_from(index).ok().filter(|&ring| ring < self.rings);
        let group = |ring: u16| self.workers.get(usize::from(ring) % self.workers.len());
        match ring.and_then(|ring| Some((group(ring)?.pause(), ring))) {
            Some(found) => Ok(found),
            None => Err(format!("there is no ring {index}, only {}", self.rings)),
        }
    }

    /// Has `set` change ring `index`, which must be stopped. Returns the group that it belongs to.
    pub(crate) fn set_stopped(
        &self,
        index: u32,
        set: impl FnOnce(&mut Ring),
    ) -> Result<Paused<'s, 'd, D>, String> {
        let (mut group, number) = self.group(index)?;
        match group.ring(number) {
            Some(ring) if ring.is_stopped() => set(ring),
            _ => return Err(format!("ring {index} is in use")),
        }
        Ok(group)
    }

    /// Starts the rings of `group` that have all they need.
    pub(crate) fn start_rings_of(&self, group: &mut QueueGroup<'d, D>) {
        let Some(features) = self.features.filter(|_| !self.memory.is_empty()) else {
            return;
        };
        group.start_rings(&Start {
            memory: &self.memory,
            inflight: self.inflight.as_ref(),
            modern: features & VERSION_1 != 0,
            event_idx: features & EVENT_IDX != 0,
        });
    }

    /// Has all groups use the present memory, after some was removed or replaced.
    pub(crate) fn memory_changed(&self) {
        for mut group in self.groups() {
            group.set_memory(self.memory.guest());
            self.start_rings_of(&mut group);
        }
    }

    /// Has all groups use the present memory, after some was added.
    pub(crate) fn memory_grew(&self) {
        for mut group in self.groups() {
            group.extend_memory(self.memory.guest());
            self.start_rings_of(&mut group);
        }
    }
}
