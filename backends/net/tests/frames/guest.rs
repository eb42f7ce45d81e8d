//! A guest with a virtio-net driver: buffers in guest memory, frames sent and received.

use std::ops::{Deref, DerefMut};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use bulkhead_test_frontend::{Buffer, PROTOCOL_FEATURES, Shape};
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserConfigFlags;
use virtio_bindings::virtio_net as net;

pub(crate) use bulkhead_test_frontend::{EVENT_IDX, VERSION_1, readable};

use crate::wire::Net;

pub(crate) const RING_SIZE: u16 = 256;
const MEMORY: usize = 64 << 20;
/// Room for the buffers of one descriptor of one ring.
const SLOT: u64 = 0x1_1000;
const BUFFERS: u64 = 4 << 20;

/// What every guest here accepts.
const BASE: u64 = VERSION_1 | PROTOCOL_FEATURES | EVENT_IDX;
pub(crate) const MERGED: u64 = 1 << net::VIRTIO_NET_F_MRG_RXBUF;
/// Large TCP packets, both ways.
pub(crate) const LARGE: u64 = 1 << net::VIRTIO_NET_F_GUEST_CSUM
    | 1 << net::VIRTIO_NET_F_GUEST_TSO4
    | 1 << net::VIRTIO_NET_F_CSUM
    | 1 << net::VIRTIO_NET_F_HOST_TSO4;
pub(crate) const SEVERAL: u64 = 1 << net::VIRTIO_NET_F_MQ | 1 << net::VIRTIO_NET_F_CTRL_VQ;

/// A guest with a network card.
pub(crate) struct Guest {
    guest: bulkhead_test_frontend::Guest,
    /// The next descriptor of each ring; they are used in turn.
    next: Vec<u16>,
}

impl Deref for Guest {
    type Target = bulkhead_test_frontend::Guest;

    fn deref(&self) -> &Self::Target {
        &self.guest
    }
}

impl DerefMut for Guest {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.guest
    }
}

const fn shape(rings: usize) -> Shape {
    Shape {
        rings,
        ring_size: RING_SIZE,
        memory: MEMORY,
    }
}

impl Guest {
    /// Connects, accepts `features` besides what every guest does, and starts `rings` rings.
    pub(crate) fn connect(net: &Net, features: u64, rings: usize) -> Self {
        let guest = bulkhead_test_frontend::Guest::connect(&net.socket, shape(rings));
        Self::start(guest, features)
    }

    /// The same on a socket that is connected already.
    pub(crate) fn on_stream(stream: UnixStream, features: u64, rings: usize) -> Self {
        let guest = bulkhead_test_frontend::Guest::on_stream(stream, shape(rings));
        Self::start(guest, features)
    }

    fn start(mut guest: bulkhead_test_frontend::Guest, features: u64) -> Self {
        guest.accept = Some(features | BASE);
        guest.start();
        let next = vec![0; guest.rings.len()];
        Self { guest, next }
    }

    /// Connects to another backend with everything the guest had before.
    pub(crate) fn reconnect(&mut self, net: &Net) {
        self.guest.reconnect(&net.socket);
    }

    /// The first `length` bytes of the configuration space.
    pub(crate) fn config(&mut self, length: u32) -> Vec<u8> {
        let flags = VhostUserConfigFlags::empty();
        self.frontend
            .get_config(0, length, flags, &vec![0; length as usize])
            .unwrap()
            .1
    }

    /// Where the buffer of a descriptor is.
    pub(crate) fn buffer(ring: usize, descriptor: u16) -> u64 {
        // Rings share the buffers of their pairs' halves; no test uses more than two at once with buffers this large.
        BUFFERS + SLOT * (u64::from(descriptor) + u64::from(RING_SIZE) * (ring as u64 % 2))
    }

    /// Offers a chain of buffers of these lengths. Returns the descriptors used.
    pub(crate) fn post(&mut self, ring: usize, lengths: &[u32], writable: bool) -> Vec<u16> {
        let first = self.next[ring];
        self.next[ring] = (first + lengths.len() as u16) % RING_SIZE;
        let chain: Vec<(u16, Buffer)> = (first..)
            .zip(lengths)
            .map(|(descriptor, &length)| {
                let descriptor = descriptor % RING_SIZE;
                let address = Self::buffer(ring, descriptor);
                let buffer = Buffer {
                    address,
                    length,
                    writable,
                };
                (descriptor, buffer)
            })
            .collect();
        self.post_in(ring, &chain);
        chain
            .into_iter()
            .map(|(descriptor, _)| descriptor)
            .collect()
    }

    /// Offers `count` buffers of `length` bytes to receive into.
    pub(crate) fn post_receive(&mut self, ring: usize, count: usize, length: u32) {
        for _ in 0..count {
            self.post(ring, &[length], true);
        }
        self.kick(ring);
    }

    /// Sends a frame that lies in pieces of these lengths, the last of which takes the rest; waits until it is sent.
    pub(crate) fn send(&mut self, frame: &[u8], pieces: &[usize]) {
        let mut lengths: Vec<u32> = pieces.iter().map(|&piece| piece as u32).collect();
        lengths.push((frame.len() - pieces.iter().sum::<usize>()) as u32);
        let mut rest = frame;
        let first = self.next[1];
        for (at, &length) in lengths.iter().enumerate() {
            let (piece, after) = rest.split_at(length as usize);
            self.put(Self::buffer(1, (first + at as u16) % RING_SIZE), piece);
            rest = after;
        }
        self.post(1, &lengths, false);
        self.kick(1);
        let used = self.wait_used(1, 1);
        assert_eq!(used, [(u32::from(first), 0)]);
    }

    /// How many chains were offered and are not completed.
    pub(crate) fn outstanding(&self, ring: usize) -> u16 {
        self.rings[ring].outstanding()
    }

    /// Whether a frame comes within a while.
    pub(crate) fn receives_within(&mut self, ring: usize, patience: Duration) -> bool {
        self.used_within(ring, 1, patience)
    }

    /// The next frame, its header included, out of as many buffers as it says.
    pub(crate) fn receive(&mut self, ring: usize) -> Vec<u8> {
        let first = self.wait_used(ring, 1)[0];
        let mut frame = self.get(Self::buffer(ring, first.0 as u16), first.1 as usize);
        let buffers = u16::from_le_bytes([frame[10], frame[11]]);
        assert_ne!(buffers, 0);
        // All of them are there at once: a driver does not wait.
        let there = self.used_index(ring).wrapping_sub(self.rings[ring].seen);
        assert!(
            there >= buffers - 1,
            "{there} of {} more buffers",
            buffers - 1
        );
        for _ in 1..buffers {
            let (head, length) = self.wait_used(ring, 1)[0];
            frame.extend(self.get(Self::buffer(ring, head as u16), length as usize));
        }
        frame
    }
}
