//! A connected backend: negotiates the features that both ends use.

use std::path::Path;

use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use virtio_bindings::virtio_config::{VIRTIO_F_IN_ORDER, VIRTIO_F_ORDER_PLATFORM};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::backend_channel::BackendChannel;
use super::config::Connector;
use super::connection::Connection;
use super::device_type;
use super::error::{Fault, Result};
use crate::virtio::F_VERSION_1;

const PROTOCOL_FEATURES: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// Bits 0–23 and 50–63 are the device type's own (virtio 1.2 §2.2).
const DEVICE_FEATURES: u64 = 0x00ff_ffff | !0 << 50;
/// Of the others, those that are passed through. Left out are RING_PACKED (a packed ring does not hold how far a
/// backend that died had come), NOTIFICATION_DATA (an eventfd carries no data), and what this transport does not
/// implement.
const QUEUE_FEATURES: u64 = F_VERSION_1
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | 1 << VIRTIO_F_IN_ORDER
    | 1 << VIRTIO_F_ORDER_PLATFORM;

/// A connected backend and what was negotiated with it.
pub(super) struct Backend {
    pub(super) connection: Connection,
    /// The virtio features it offers, and vhost-user's PROTOCOL_FEATURES.
    pub(super) features: u64,
    pub(super) protocol: VhostUserProtocolFeatures,
    /// How many queues it has, if it can be asked (MQ).
    pub(super) queues: Option<u64>,
    /// Where it notifies of changes of its configuration, until the reconnect thread takes it.
    pub(super) channel: Option<BackendChannel>,
}

impl Backend {
    /// Connects and negotiates. `slots`: guest RAM has too many regions for one memory table, and is added region by
    /// region.
    pub(super) fn establish(socket: &Path, connector: &Connector, slots: bool) -> Result<Self> {
        let mut connection = Connection::open(socket, connector)?;
        let features = connection.features()?;
        if features & F_VERSION_1 == 0 {
            return Err(Fault::Lacks("a modern virtio device (VERSION_1)"));
        }
        let mut protocol = VhostUserProtocolFeatures::empty();
        let mut queues = None;
        if features & PROTOCOL_FEATURES != 0 {
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
            features,
            protocol,
            queues,
        })
    }

    /// Sets the size of each queue. A backend that does not accept one answers so, or ends the connection.
    pub(super) fn try_queue_sizes(&self, sizes: &[u16]) -> Result<()> {
        let mut queues = (0..).zip(sizes);
        queues.try_for_each(|(queue, size)| self.connection.set_vring_num(queue, *size))?;
        self.connection.sync()
    }

    /// The virtio features that a driver may be offered, as far as they do not depend on the device type.
    pub(super) fn guest_features(&self) -> u64 {
        self.features & (DEVICE_FEATURES | QUEUE_FEATURES)
    }

    /// vhost-user's own feature, which the frontend accepts beside the driver's.
    pub(super) fn own_features(&self) -> u64 {
        self.features & PROTOCOL_FEATURES
    }

    /// Whether vrings start disabled (vhost-user specification, "Ring states").
    pub(super) fn enables_rings(&self) -> bool {
        self.own_features() != 0
    }

    pub(super) fn has(&self, feature: VhostUserProtocolFeatures) -> bool {
        self.protocol.contains(feature)
    }

    /// Reads the configuration space, if the device type and the backend have one. The deadline set before applies.
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
