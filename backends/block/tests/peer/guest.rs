//! A guest with a virtio-blk driver: requests in slots of guest memory.

use std::ops::{Deref, DerefMut};
use std::path::Path;

use bulkhead_test_frontend::{Buffer, Shape};
use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};

use super::Backend;

pub const RING_SIZE: u16 = 128;
pub const FLUSH: u64 = 1 << 9;
pub const MEMORY: usize = 96 << 20;

const SLOTS: u64 = 16 << 20;
/// The room of one request: header, status, and from `DATA` on its data.
const SLOT: u64 = 512 << 10;
const DATA: u64 = 4096;

/// A guest with a disk.
pub struct Guest(bulkhead_test_frontend::Guest);

impl Deref for Guest {
    type Target = bulkhead_test_frontend::Guest;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for Guest {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

impl Guest {
    /// Connects, negotiates everything that is offered, and starts `rings` rings.
    pub fn connect(backend: &Backend, rings: usize) -> Self {
        let mut guest = Self::connect_only(backend, rings);
        guest.start();
        guest
    }

    /// Connects and sets nothing up.
    pub fn connect_only(backend: &Backend, rings: usize) -> Self {
        Self::connect_to(&backend.socket, rings)
    }

    /// Connects to whatever serves `socket` and sets nothing up.
    pub fn connect_to(socket: &Path, rings: usize) -> Self {
        let shape = Shape {
            rings,
            ring_size: RING_SIZE,
            memory: MEMORY,
        };
        Self(bulkhead_test_frontend::Guest::connect(socket, shape))
    }

    /// Connects to another backend with everything the guest had before.
    pub fn reconnect(&mut self, backend: &Backend) {
        self.0.reconnect(&backend.socket);
    }

    /// The guest address of the data of request slot `slot`.
    pub fn data(slot: u64) -> u64 {
        SLOTS + SLOT * slot + DATA
    }

    fn status_at(slot: u64) -> u64 {
        SLOTS + SLOT * slot + 16
    }

    pub fn status(&self, slot: u64) -> u8 {
        self.get(Self::status_at(slot), 1)[0]
    }

    /// Posts a block request that uses request slot `slot`; `length` bytes of data follow the header or precede the
    /// status.
    pub fn post_block(
        &mut self,
        ring: usize,
        slot: u64,
        (kind, sector): (u32, u64),
        (length, is_in): (u32, bool),
    ) -> u16 {
        let header = SLOTS + SLOT * slot;
        self.put(header, &kind.to_le_bytes());
        self.put(header + 4, &[0; 4]);
        self.put(header + 8, &sector.to_le_bytes());
        self.put(Self::status_at(slot), &[0xff]);
        let buffer = |address, length, writable| Buffer {
            address,
            length,
            writable,
        };
        let mut buffers = vec![buffer(header, 16, false)];
        if length != 0 {
            buffers.push(buffer(Self::data(slot), length, is_in));
        }
        buffers.push(buffer(Self::status_at(slot), 1, true));
        self.post(ring, &buffers)
    }

    /// Makes one request, waits for it and returns its status. Its descriptors are free again.
    pub fn request(&mut self, kind: u32, sector: u64, length: u32, is_in: bool) -> u8 {
        self.request_on(0, kind, sector, (length, is_in))
    }

    pub fn request_on(&mut self, ring: usize, kind: u32, sector: u64, data: (u32, bool)) -> u8 {
        let before = self.rings[ring].free.clone();
        let head = self.post_block(ring, 0, (kind, sector), data);
        self.kick(ring);
        let done = self.wait_used(ring, 1);
        assert_eq!(done[0].0, u32::from(head));
        self.rings[ring].free = before;
        self.status(0)
    }

    pub fn read(&mut self, sector: u64, length: u32) -> Vec<u8> {
        self.put(Self::data(0), &vec![0xee; length as usize]);
        assert_eq!(self.request(VIRTIO_BLK_T_IN, sector, length, true), 0);
        self.get(Self::data(0), length as usize)
    }

    pub fn write(&mut self, sector: u64, bytes: &[u8]) {
        self.put(Self::data(0), bytes);
        let length = bytes.len() as u32;
        assert_eq!(self.request(VIRTIO_BLK_T_OUT, sector, length, false), 0);
    }

    pub fn flush(&mut self) {
        assert_eq!(self.request(VIRTIO_BLK_T_FLUSH, 0, 0, false), 0);
    }
}
