//! A guest: its memory, and the connection by which it is shared with the backend.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::fs::MemfdFlags;
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserInflight};
use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use crate::ring::Ring;

/// VIRTIO_F_VERSION_1
pub const VERSION_1: u64 = 1 << 32;
/// VHOST_USER_F_PROTOCOL_FEATURES
pub const PROTOCOL_FEATURES: u64 = 1 << 30;
/// VIRTIO_F_EVENT_IDX
pub const EVENT_IDX: u64 = 1 << 29;

/// How large a guest is.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// How many rings it starts.
    pub rings: usize,
    /// How many descriptors each ring has, 1024 at the most.
    pub ring_size: u16,
    /// Bytes of memory, from guest address 0 on.
    pub memory: usize,
}

/// A frontend and a driver: memory, rings, and the connection that shares them.
pub struct Guest {
    /// The guest's memory.
    pub memory: GuestMemoryMmap,
    /// The connection.
    pub frontend: Frontend,
    /// The rings.
    pub rings: Vec<Ring>,
    /// The in-flight area, which the guest keeps over a reconnection.
    pub inflight: Option<(VhostUserInflight, File)>,
    /// The features to accept; `None`: all that are offered.
    pub accept: Option<u64>,
    /// The features that the backend offered.
    pub offered: u64,
    /// The features that were accepted.
    pub features: u64,
    /// The protocol features that were accepted.
    pub protocol: VhostUserProtocolFeatures,
}

/// `length` bytes of guest memory in a memfd called `guest`.
#[must_use]
pub fn guest_memory(length: usize) -> GuestMemoryMmap {
    let fd: OwnedFd = rustix::fs::memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&fd, length as u64).unwrap();
    let file = FileOffset::new(File::from(fd), 0);
    GuestMemoryMmap::from_ranges_with_files([(GuestAddress(0), length, Some(file))]).unwrap()
}

impl Guest {
    /// Connects to `socket`, and sends nothing.
    #[must_use]
    pub fn connect(socket: &Path, shape: Shape) -> Self {
        Self::new(
            Frontend::connect(socket, shape.rings as u64).unwrap(),
            shape,
        )
    }

    /// Uses a connected socket, and sends nothing.
    #[must_use]
    pub fn on_stream(stream: UnixStream, shape: Shape) -> Self {
        Self::new(Frontend::from_stream(stream, shape.rings as u64), shape)
    }

    fn new(frontend: Frontend, shape: Shape) -> Self {
        Self {
            memory: guest_memory(shape.memory),
            frontend,
            rings: (0..shape.rings)
                .map(|index| Ring::new(index, shape.ring_size))
                .collect(),
            inflight: None,
            accept: None,
            offered: 0,
            features: 0,
            protocol: VhostUserProtocolFeatures::empty(),
        }
    }

    /// Connects to another backend, and starts there with the memory, rings and in-flight area that the guest has.
    pub fn reconnect(&mut self, socket: &Path) {
        self.frontend = Frontend::connect(socket, self.rings.len() as u64).unwrap();
        self.start();
    }

    /// Negotiates, shares the memory, and starts all rings.
    pub fn start(&mut self) {
        self.negotiate();
        if self
            .protocol
            .contains(VhostUserProtocolFeatures::INFLIGHT_SHMFD)
        {
            self.share_inflight_area();
        }
        self.frontend.set_mem_table(&self.regions()).unwrap();
        for index in 0..self.rings.len() {
            self.start_ring(index).unwrap();
        }
    }

    /// Negotiates the protocol features that this frontend has, and the features to [`accept`](Self::accept).
    pub fn negotiate(&mut self) {
        let frontend = &mut self.frontend;
        frontend.set_owner().unwrap();
        self.offered = frontend.get_features().unwrap();
        let known = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::INFLIGHT_SHMFD
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::RESET_DEVICE;
        self.protocol = frontend.get_protocol_features().unwrap() & known;
        frontend.set_protocol_features(self.protocol).unwrap();
        if self.protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        self.features = self.accept.unwrap_or(self.offered);
        frontend.set_features(self.features).unwrap();
    }

    fn share_inflight_area(&mut self) {
        let size = self.rings.first().map_or(0, |ring| ring.size);
        let wanted = VhostUserInflight::new(0, 0, self.rings.len() as u16, size);
        let area = self.inflight.take();
        let area = area.unwrap_or_else(|| self.frontend.get_inflight_fd(&wanted).unwrap());
        self.frontend
            .set_inflight_fd(&area.0, area.1.as_raw_fd())
            .unwrap();
        self.inflight = Some(area);
    }

    /// The regions of the memory, for SET_MEM_TABLE.
    #[must_use]
    pub fn regions(&self) -> Vec<VhostUserMemoryRegionInfo> {
        self.memory
            .iter()
            .map(|region| VhostUserMemoryRegionInfo::from_guest_region(region).unwrap())
            .collect()
    }

    /// The addresses of ring `index`, for SET_VRING_ADDR.
    #[must_use]
    pub fn ring_config(&self, index: usize) -> VringConfigData {
        let ring = &self.rings[index];
        let user = |address| self.memory.get_host_address(GuestAddress(address)).unwrap() as u64;
        VringConfigData {
            queue_max_size: ring.size,
            queue_size: ring.size,
            flags: 0,
            desc_table_addr: user(ring.descriptors()),
            used_ring_addr: user(ring.used_ring()),
            avail_ring_addr: user(ring.available_ring()),
            log_addr: None,
        }
    }

    /// Sets ring `index` up and enables it.
    ///
    /// # Errors
    /// When the backend refuses that.
    pub fn start_ring(&mut self, index: usize) -> Result<(), vhost::Error> {
        let config = self.ring_config(index);
        let ring = &self.rings[index];
        let frontend = &mut self.frontend;
        frontend.set_vring_num(index, ring.size)?;
        frontend.set_vring_base(index, ring.seen)?;
        frontend.set_vring_addr(index, &config)?;
        frontend.set_vring_err(index, &ring.err)?;
        frontend.set_vring_kick(index, &ring.kick)?;
        frontend.set_vring_call(index, &ring.call)?;
        frontend.set_vring_enable(index, true)
    }

    /// The first guest address that is not a ring's.
    #[must_use]
    pub fn free_memory(&self) -> u64 {
        Ring::end_of(self.rings.len())
    }

    /// Writes guest memory.
    pub fn put(&self, at: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    /// Reads guest memory.
    #[must_use]
    pub fn get(&self, at: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory
            .read_slice(&mut bytes, GuestAddress(at))
            .unwrap();
        bytes
    }
}

impl std::fmt::Debug for Guest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guest")
            .field("rings", &self.rings)
            .finish_non_exhaustive()
    }
}
