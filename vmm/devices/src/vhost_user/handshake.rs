//! Getting to know a backend: what it offers, and what of that is used.

use std::path::Path;

use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use virtio_bindings::virtio_config::{VIRTIO_F_IN_ORDER, VIRTIO_F_ORDER_PLATFORM};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::Connector;
use super::backend_channel::BackendChannel;
use super::connection::Connection;
use super::device_type;
use super::error::{Fault, Result};
use crate::virtio::F_VERSION_1;

const PROTOCOL_FEATURES: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// Bits 0–23 and 50–63 are the device type's own (virtio 1.2 §2.2).
const DEVICE_FEATURES: u64 = 0x00ff_ffff | !0 << 50;
/// Of the others those that go through to the backend. Left out: RING_PACKED (a crashed backend's place in such a ring is not in
/// guest memory), NOTIFICATION_DATA (a doorbell that is an eventfd carries none), and what this transport has not.
const QUEUE_FEATURES: u64 = F_VERSION_1
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | 1 << VIRTIO_F_IN_ORDER
    | 1 << VIRTIO_F_ORDER_PLATFORM;

/// A backend that has answered, and what was agreed on.
pub(super) struct Link {
    pub(super) connection: Connection,
    /// Virtio features the backend offers, with those that are vhost-user's own.
    pub(super) backend_features: u64,
    pub(super) protocol: VhostUserProtocolFeatures,
    /// How many queues it has, if it says so.
    pub(super) queues: Option<u64>,
    /// Where it tells of changes of its configuration, until the supervisor takes it.
    pub(super) channel: Option<BackendChannel>,
}

impl Link {
    /// Connects and negotiates. `slots`: memory has to be given region by region.
    pub(super) fn establish(socket: &Path, connector: &Connector, slots: bool) -> Result<Self> {
        let mut connection = Connection::open(socket, connector)?;
        let backend_features = connection.features()?;
        if backend_features & F_VERSION_1 == 0 {
            return Err(Fault::Lacks("a modern virtio device (VERSION_1)"));
        }
        let mut protocol = VhostUserProtocolFeatures::empty();
        let mut queues = None;
        if backend_features & PROTOCOL_FEATURES != 0 {
            protocol = connection.protocol_features()? & wanted(slots);
            connection.set_protocol_features(protocol)?;
            if protocol.contains(VhostUserProtocolFeatures::MQ) {
                queues = Some(connection.queue_num()?);
            }
        }
        if slots && !protocol.contains(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS) {
            return Err(Fault::Lacks("more than 8 memory regions"));
        }
        connection.set_owner()?;
        let channel = VhostUserProtocolFeatures::BACKEND_REQ | VhostUserProtocolFeatures::CONFIG;
        let channel = match protocol.contains(channel) {
            true => Some(BackendChannel::open(&connection)?),
            false => None,
        };
        Ok(Self {
            channel,
            connection,
            backend_features,
            protocol,
            queues,
        })
    }

    /// Asks for queues of these lengths, one for each queue. A backend that does not take them says so, or ends the connection.
    pub(super) fn try_sizes(&self, sizes: &[u16]) -> Result<()> {
        let mut queues = (0..).zip(sizes);
        queues.try_for_each(|(queue, size)| self.connection.set_vring_num(queue, *size))?;
        self.connection.settle()
    }

    /// The virtio features that a driver may be offered, before the device type has its say.
    pub(super) fn guest_features(&self) -> u64 {
        self.backend_features & (DEVICE_FEATURES | QUEUE_FEATURES)
    }

    /// Vhost-user's own feature, to be accepted along with the driver's.
    pub(super) fn own_features(&self) -> u64 {
        self.backend_features & PROTOCOL_FEATURES
    }

    /// Rings start disabled and have to be enabled.
    pub(super) fn enables_rings(&self) -> bool {
        self.own_features() != 0
    }

    pub(super) fn has(&self, feature: VhostUserProtocolFeatures) -> bool {
        self.protocol.contains(feature)
    }

    /// The configuration space, if the backend has one and a device of this type does. It is part of the step begun before.
    pub(super) fn config(&self, device_type: u16) -> Result<Option<Vec<u8>>> {
        let len = device_type::config_len(device_type);
        if len == 0 || !self.has(VhostUserProtocolFeatures::CONFIG) {
            return Ok(None);
        }
        match self.connection.config(len) {
            Ok(config) => Ok(Some(config)),
            Err(Fault::Refused(_)) => Ok(None),
            Err(fault) => Err(fault),
        }
    }
}

fn wanted(slots: bool) -> VhostUserProtocolFeatures {
    let mut wanted = VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::CONFIG
        | VhostUserProtocolFeatures::BACKEND_REQ
        | VhostUserProtocolFeatures::INFLIGHT_SHMFD;
    if slots {
        wanted |= VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS;
    }
    wanted
}
