//! The guest's side: memory, rings, and the connection that shares them.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::MemfdFlags;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserInflight};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::virtio_net as net;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use crate::wire::{Net, PATIENCE};

pub(crate) const RING_SIZE: u16 = 256;
const MEMORY: usize = 64 << 20;
const RINGS: u64 = 0x1_0000;
/// Room for the buffers of one descriptor of one ring.
const SLOT: u64 = 0x1_1000;
const BUFFERS: u64 = 4 << 20;

pub(crate) const VERSION_1: u64 = 1 << 32;
pub(crate) const EVENT_IDX: u64 = 1 << 29;
const PROTOCOL_FEATURES: u64 = 1 << 30;
/// What every guest here accepts.
const BASE: u64 = VERSION_1 | PROTOCOL_FEATURES | EVENT_IDX;
pub(crate) const MERGED: u64 = 1 << net::VIRTIO_NET_F_MRG_RXBUF;
/// Large TCP packets, both ways.
pub(crate) const LARGE: u64 = 1 << net::VIRTIO_NET_F_GUEST_CSUM
    | 1 << net::VIRTIO_NET_F_GUEST_TSO4
    | 1 << net::VIRTIO_NET_F_CSUM
    | 1 << net::VIRTIO_NET_F_HOST_TSO4;
pub(crate) const SEVERAL: u64 = 1 << net::VIRTIO_NET_F_MQ | 1 << net::VIRTIO_NET_F_CTRL_VQ;

/// What a driver keeps of a ring.
pub(crate) struct Ring {
    index: usize,
    pub(crate) kick: EventFd,
    pub(crate) call: EventFd,
    pub(crate) err: EventFd,
    /// The next descriptor; they are used in turn.
    next: u16,
    available: u16,
    seen: u16,
}

impl Ring {
    fn new(index: usize) -> Self {
        let event = || EventFd::new(libc::EFD_NONBLOCK).unwrap();
        Self {
            index,
            kick: event(),
            call: event(),
            err: event(),
            next: 0,
            available: 0,
            seen: 0,
        }
    }

    pub(crate) fn descriptors(&self) -> u64 {
        RINGS * (self.index as u64 + 1)
    }

    pub(crate) fn available_ring(&self) -> u64 {
        self.descriptors() + 0x4000
    }

    fn used_ring(&self) -> u64 {
        self.descriptors() + 0x8000
    }
}

pub(crate) struct Guest {
    pub(crate) memory: GuestMemoryMmap,
    pub(crate) frontend: Frontend,
    pub(crate) rings: Vec<Ring>,
    pub(crate) offered: u64,
    accepted: u64,
    pub(crate) inflight: Option<(VhostUserInflight, File)>,
}

impl Guest {
    /// Connects, accepts `features` besides what every guest does, and starts `rings` rings.
    pub(crate) fn connect(net: &Net, features: u64, rings: usize) -> Self {
        Self::with(
            Frontend::connect(&net.socket, rings as u64).unwrap(),
            features,
            rings,
        )
    }

    fn with(frontend: Frontend, features: u64, rings: usize) -> Self {
        let fd: OwnedFd = rustix::fs::memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&fd, MEMORY as u64).unwrap();
        let file = FileOffset::new(File::from(fd), 0);
        let memory =
            GuestMemoryMmap::from_ranges_with_files([(GuestAddress(0), MEMORY, Some(file))])
                .unwrap();
        let rings = (0..rings).map(Ring::new).collect();
        let accepted = features | BASE;
        let mut guest = Guest {
            memory,
            frontend,
            rings,
            offered: 0,
            accepted,
            inflight: None,
        };
        guest.start();
        guest
    }

    /// The same on a socket that is connected already.
    pub(crate) fn on_stream(stream: UnixStream, features: u64, rings: usize) -> Self {
        Self::with(Frontend::from_stream(stream, rings as u64), features, rings)
    }

    /// Connects to another back-end with everything the guest had before.
    pub(crate) fn reconnect(&mut self, net: &Net) {
        self.frontend = Frontend::connect(&net.socket, self.rings.len() as u64).unwrap();
        self.start();
    }

    fn start(&mut self) {
        let frontend = &mut self.frontend;
        frontend.set_owner().unwrap();
        self.offered = frontend.get_features().unwrap();
        let protocol = frontend.get_protocol_features().unwrap();
        frontend.set_protocol_features(protocol).unwrap();
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        frontend.set_features(self.accepted).unwrap();
        let wanted = VhostUserInflight::new(0, 0, self.rings.len() as u16, RING_SIZE);
        let kept = self
            .inflight
            .take()
            .unwrap_or_else(|| frontend.get_inflight_fd(&wanted).unwrap());
        frontend
            .set_inflight_fd(&kept.0, kept.1.as_raw_fd())
            .unwrap();
        self.inflight = Some(kept);
        let regions: Vec<_> = self
            .memory
            .iter()
            .map(|region| VhostUserMemoryRegionInfo::from_guest_region(region).unwrap())
            .collect();
        frontend.set_mem_table(&regions).unwrap();
        for index in 0..self.rings.len() {
            self.start_ring(index);
        }
    }

    pub(crate) fn start_ring(&mut self, index: usize) {
        let ring = &self.rings[index];
        let user = |address| self.memory.get_host_address(GuestAddress(address)).unwrap() as u64;
        let config = VringConfigData {
            queue_max_size: RING_SIZE,
            queue_size: RING_SIZE,
            flags: 0,
            desc_table_addr: user(ring.descriptors()),
            used_ring_addr: user(ring.used_ring()),
            avail_ring_addr: user(ring.available_ring()),
            log_addr: None,
        };
        let frontend = &mut self.frontend;
        frontend.set_vring_num(index, RING_SIZE).unwrap();
        frontend.set_vring_base(index, ring.seen).unwrap();
        frontend.set_vring_addr(index, &config).unwrap();
        frontend.set_vring_err(index, &ring.err).unwrap();
        frontend.set_vring_kick(index, &ring.kick).unwrap();
        frontend.set_vring_call(index, &ring.call).unwrap();
        frontend.set_vring_enable(index, true).unwrap();
    }

    pub(crate) fn config(&mut self, length: u32) -> Vec<u8> {
        let flags = VhostUserConfigFlags::empty();
        self.frontend
            .get_config(0, length, flags, &vec![0; length as usize])
            .unwrap()
            .1
    }

    pub(crate) fn put(&self, at: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    pub(crate) fn get(&self, at: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory
            .read_slice(&mut bytes, GuestAddress(at))
            .unwrap();
        bytes
    }

    /// Where the buffer of a descriptor is.
    pub(crate) fn buffer(ring: usize, descriptor: u16) -> u64 {
        // Rings share the buffers of their pairs' halves; no test uses more than two at once with buffers this large.
        BUFFERS + SLOT * (u64::from(descriptor) + u64::from(RING_SIZE) * (ring as u64 % 2))
    }

    pub(crate) fn put_descriptor(&self, ring: usize, index: u16, words: (u64, u32, u16, u16)) {
        let at = self.rings[ring].descriptors() + 16 * u64::from(index);
        self.put(at, &words.0.to_le_bytes());
        self.put(at + 8, &words.1.to_le_bytes());
        self.put(at + 12, &words.2.to_le_bytes());
        self.put(at + 14, &words.3.to_le_bytes());
    }

    /// Makes the chain at `head` available.
    pub(crate) fn offer(&mut self, ring: usize, head: u16) {
        let state = &mut self.rings[ring];
        let slot = u64::from(state.available % RING_SIZE);
        let at = state.available_ring();
        state.available = state.available.wrapping_add(1);
        let index = state.available;
        self.put(at + 4 + 2 * slot, &head.to_le_bytes());
        self.memory
            .store(index.to_le(), GuestAddress(at + 2), Ordering::Release)
            .unwrap();
    }

    /// Offers a chain of buffers of these lengths; the descriptors used.
    pub(crate) fn post(&mut self, ring: usize, lengths: &[u32], writable: bool) -> Vec<u16> {
        let first = self.rings[ring].next;
        let descriptors: Vec<u16> = (0..lengths.len() as u16)
            .map(|n| (first + n) % RING_SIZE)
            .collect();
        self.rings[ring].next = (first + lengths.len() as u16) % RING_SIZE;
        for (at, (&descriptor, &length)) in descriptors.iter().zip(lengths).enumerate() {
            let next = descriptors.get(at + 1).copied();
            let flags = u16::from(next.is_some()) | u16::from(writable) << 1;
            let words = (
                Self::buffer(ring, descriptor),
                length,
                flags,
                next.unwrap_or(0),
            );
            self.put_descriptor(ring, descriptor, words);
        }
        self.offer(ring, descriptors[0]);
        descriptors
    }

    /// Offers `count` buffers of `length` bytes to receive into.
    pub(crate) fn post_receive(&mut self, ring: usize, count: usize, length: u32) {
        for _ in 0..count {
            self.post(ring, &[length], true);
        }
        self.rings[ring].kick.write(1).unwrap();
    }

    /// Sends a frame that lies in pieces of these lengths, the last of which takes the rest; waits until it is sent.
    pub(crate) fn send(&mut self, frame: &[u8], pieces: &[usize]) {
        let mut lengths: Vec<u32> = pieces.iter().map(|&piece| piece as u32).collect();
        lengths.push((frame.len() - pieces.iter().sum::<usize>()) as u32);
        let mut rest = frame;
        let first = self.rings[1].next;
        for (at, &length) in lengths.iter().enumerate() {
            let (piece, after) = rest.split_at(length as usize);
            self.put(Self::buffer(1, (first + at as u16) % RING_SIZE), piece);
            rest = after;
        }
        self.post(1, &lengths, false);
        self.rings[1].kick.write(1).unwrap();
        let used = self.wait_used(1, 1);
        assert_eq!(used, [(u32::from(first), 0)]);
    }

    pub(crate) fn used_index(&self, ring: usize) -> u16 {
        let at = GuestAddress(self.rings[ring].used_ring() + 2);
        u16::from_le(self.memory.load(at, Ordering::Acquire).unwrap())
    }

    /// How many chains were offered and are not completed.
    pub(crate) fn outstanding(&self, ring: usize) -> u16 {
        self.rings[ring]
            .available
            .wrapping_sub(self.rings[ring].seen)
    }

    fn used(&self, ring: usize, number: u16) -> (u32, u32) {
        let at = self.rings[ring].used_ring() + 4 + 8 * u64::from(number % RING_SIZE);
        let word = |at| u32::from_le_bytes(self.get(at, 4).try_into().unwrap());
        (word(at), word(at + 4))
    }

    /// Asks to be told when `count` completions more than those seen are there.
    pub(crate) fn want_told(&self, ring: usize, count: u16) {
        let ring = &self.rings[ring];
        let event = ring.available_ring() + 4 + 2 * u64::from(RING_SIZE);
        let last = ring.seen.wrapping_add(count - 1).to_le();
        self.memory
            .store(last, GuestAddress(event), Ordering::SeqCst)
            .unwrap();
        fence(Ordering::SeqCst);
    }

    /// Waits until `count` completions more than those seen are there, woken by the call descriptor alone.
    pub(crate) fn wait_used(&mut self, ring: usize, count: u16) -> Vec<(u32, u32)> {
        self.want_told(ring, count);
        let from = self.rings[ring].seen;
        let start = Instant::now();
        while self.used_index(ring).wrapping_sub(from) < count {
            let left = PATIENCE.saturating_sub(start.elapsed());
            assert!(readable(&self.rings[ring].call, left), "no notification");
            let _ = self.rings[ring].call.read();
        }
        self.rings[ring].seen = from.wrapping_add(count);
        (0..count)
            .map(|at| self.used(ring, from.wrapping_add(at)))
            .collect()
    }

    /// Whether a frame comes within a while.
    pub(crate) fn receives_within(&mut self, ring: usize, patience: Duration) -> bool {
        self.want_told(ring, 1);
        let start = Instant::now();
        while self.used_index(ring) == self.rings[ring].seen {
            if !readable(
                &self.rings[ring].call,
                patience.saturating_sub(start.elapsed()),
            ) {
                return self.used_index(ring) != self.rings[ring].seen;
            }
            let _ = self.rings[ring].call.read();
        }
        true
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

/// Waits until `fd` can be read.
pub(crate) fn readable(fd: &EventFd, patience: Duration) -> bool {
    // SAFETY: the descriptor is open: its owner is borrowed.
    let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd.as_raw_fd()) };
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::try_from(patience).unwrap())).unwrap() > 0
}
