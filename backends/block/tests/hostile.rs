//! Hostile guests and frontends: they lose a ring or a connection, and cost the process no memory and no time.

// clippy knows a test by its attribute, and not what a test is made of.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod peer;

use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use peer::{Backend, Guest, raw_image};
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserInflight;
use vhost::{VhostBackend, VhostUserMemoryRegionInfo};
use virtio_bindings::virtio_blk::VIRTIO_BLK_T_IN;
use vmm_sys_util::eventfd::EventFd;

/// Address, length, flags, next.
type Descriptor = (u64, u32, u16, u16);

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// A server that outlives its frontends.
fn server() -> (tempfile::TempDir, Backend) {
    let (folder, image) = raw_image(1 << 20);
    let backend = Backend::start(&image, "raw", &["--persist", "--num-queues", "2"]);
    (folder, backend)
}

/// Shows that the server still serves: another frontend reads a sector.
fn still_serves(backend: &mut Backend) {
    let mut guest = Guest::connect(backend, 2);
    assert_eq!(guest.read(9, 512), [9; 512]);
    assert!(backend.is_running());
}

/// Ends `backend` and gives what it said.
fn end(backend: Backend) -> String {
    let pid = rustix::process::Pid::from_child(&backend.child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let (status, said) = backend.end();
    assert!(status.success(), "{status}: {said}");
    said
}

#[test]
fn a_malformed_chain_costs_its_ring_alone_and_is_named_in_one_line() {
    let (_folder, mut backend) = server();
    let memory_end = 96u64 << 20;
    let chains: &[(&[Descriptor], &str)] = &[
        (&[(0x1000, 16, NEXT, 0)], "too long or a loop"),
        (&[(0x1000, 16, NEXT, 1), (0x1000, 16, NEXT, 0)], "too long"),
        (&[(0x1000, 16, NEXT, 500)], "descriptor 500"),
        (&[(0x1000, 0, 0, 0)], "empty"),
        (&[(memory_end - 8, 16, 0, 0)], "outside guest memory"),
        (&[(u64::MAX - 4, 16, 0, 0)], "outside guest memory"),
        (&[(0x1000, u32::MAX, 0, 0)], "outside guest memory"),
        (
            &[(0x1000, 16, WRITE | NEXT, 1), (0x1000, 16, 0, 0)],
            "follows",
        ),
        (&[(0x1_0000, 16, INDIRECT, 0)], "indirect"),
        (&[(0x1000, 17, INDIRECT, 0)], "indirect"),
        (&[(0x1000, 16, 0, 0)], "status"),
        (&[(0x1000, 15, NEXT, 1), (0x1000, 1, WRITE, 0)], "header"),
        (&[(0x1000, 512, WRITE, 0)], "header"),
    ];
    for (descriptors, _) in chains {
        let mut guest = Guest::connect(&backend, 2);
        for (index, &words) in descriptors.iter().enumerate() {
            guest.put_descriptor(0, index as u16, words);
        }
        guest.offer(0, 0);
        guest.kick(0);
        assert!(peer::readable(&guest.rings[0].err, peer::PATIENCE));
        assert_eq!(guest.used_index(0), 0, "{descriptors:?}");

        // The other ring goes on.
        assert_eq!(guest.request_on(1, VIRTIO_BLK_T_IN, 5, (512, true)), 0);

        // The driver resets the ring and starts over.
        guest.frontend.get_vring_base(0).unwrap();
        guest.put(guest.rings[0].available_ring() + 2, &[0; 2]);
        let mut fresh = Guest::connect_only(&backend, 2);
        std::mem::swap(&mut guest.rings, &mut fresh.rings);
        drop(fresh);
        guest.start_ring(0).unwrap();
        assert_eq!(guest.read(4, 512), [4; 512]);
    }
    still_serves(&mut backend);
    let said = end(backend);
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), chains.len(), "{said}");
    for (line, (_, word)) in lines.iter().zip(chains) {
        assert!(line.starts_with("warning: ring 0 is out of service: "));
        assert!(line.contains(word), "{line}: {word}");
    }
}

#[test]
fn an_available_ring_that_lies_costs_its_ring_alone() {
    let (_folder, mut backend) = server();
    for (head, index) in [(0u16, 0xf000u16), (0xffff, 1), (128, 1)] {
        let guest = Guest::connect(&backend, 1);
        let at = guest.rings[0].available_ring();
        guest.put(at + 4, &head.to_le_bytes());
        guest.put(at + 2, &index.to_le_bytes());
        guest.kick(0);
        assert!(peer::readable(&guest.rings[0].err, peer::PATIENCE));
    }
    still_serves(&mut backend);
}

#[test]
fn a_guest_that_never_stops_asking_keeps_nobody_else_waiting() {
    let (_folder, mut backend) = server();
    let mut guest = Guest::connect(&backend, 2);
    // The available index runs away from the device as fast as it can be stored: there is always more.
    let head = guest.post_block(0, 3, (VIRTIO_BLK_T_IN, 1), (512, true));
    let ring = guest.rings[0].available_ring();
    for slot in 0..128 {
        guest.put(ring + 4 + 2 * slot, &head.to_le_bytes());
    }
    let memory = guest.memory.clone();
    let used = guest.rings[0].used_ring();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = std::sync::Arc::clone(&stop);
    let flood = std::thread::spawn(move || {
        use std::sync::atomic::Ordering;
        use vm_memory::{Bytes, GuestAddress};
        while !stopped.load(Ordering::Relaxed) {
            let done: u16 = memory
                .load(GuestAddress(used + 2), Ordering::Acquire)
                .unwrap();
            let next = done.wrapping_add(120);
            memory
                .store(next, GuestAddress(ring + 2), Ordering::Release)
                .unwrap();
        }
    });
    guest.kick(0);

    for _ in 0..20 {
        assert_eq!(guest.request_on(1, VIRTIO_BLK_T_IN, 5, (512, true)), 0);
        guest.frontend.get_features().unwrap();
    }

    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    flood.join().unwrap();
    drop(guest);
    still_serves(&mut backend);
}

#[test]
fn a_message_that_makes_no_sense_is_refused_and_the_next_one_heard() {
    let (_folder, mut backend) = server();
    let mut guest = Guest::connect(&backend, 1);
    let config = guest.ring_config(0);
    let frontend = &mut guest.frontend;

    assert!(frontend.set_features(u64::MAX).is_err());
    for size in [0, 3, 2048] {
        assert!(frontend.set_vring_num(0, size).is_err());
    }
    // The ring is in use.
    assert!(frontend.set_vring_num(0, 64).is_err());
    assert!(frontend.set_vring_base(0, 3).is_err());
    assert!(frontend.set_vring_addr(0, &config).is_err());
    // A file that cannot be polled, and one that cannot be mapped.
    let file = tempfile::tempfile().unwrap();
    // SAFETY: the descriptor is the file's own, given up by it.
    let no_event = unsafe {
        <EventFd as std::os::fd::FromRawFd>::from_raw_fd(std::os::fd::IntoRawFd::into_raw_fd(file))
    };
    assert!(frontend.set_vring_kick(0, &no_event).is_err());
    let region = |size, fd| VhostUserMemoryRegionInfo {
        guest_phys_addr: 1 << 40,
        memory_size: size,
        userspace_addr: 1 << 40,
        mmap_offset: 0,
        mmap_handle: fd,
    };
    let event = EventFd::new(0).unwrap();
    let short = tempfile::tempfile().unwrap();
    short.set_len(4096).unwrap();
    for bad in [
        region(4096, event.as_raw_fd()),
        region(8192, short.as_raw_fd()),
        region(1 << 50, short.as_raw_fd()),
        VhostUserMemoryRegionInfo {
            guest_phys_addr: 0x1000,
            ..region(4096, short.as_raw_fd())
        },
        VhostUserMemoryRegionInfo {
            mmap_offset: 100,
            ..region(512, short.as_raw_fd())
        },
    ] {
        let at = (bad.guest_phys_addr, bad.memory_size);
        assert!(frontend.add_mem_region(&bad).is_err(), "{at:?}");
    }
    let area = |size, rings, ring_size| VhostUserInflight::new(size, 0, rings, ring_size);
    for bad in [
        area(16, 1, 128),
        area(1 << 40, 2000, 1024),
        area(4096, 1, 128),
    ] {
        let result = frontend.set_inflight_fd(&bad, event.as_raw_fd());
        assert!(result.is_err(), "{}", bad.mmap_size);
    }

    // The ring has lost its kick, and nothing else.
    assert!(frontend.get_features().is_ok());
    drop(guest);
    still_serves(&mut backend);
}

#[test]
fn rings_that_are_nowhere_do_not_start() {
    let (_folder, mut backend) = server();
    let mut guest = Guest::connect_only(&backend, 1);
    guest.negotiate();
    let regions = guest.regions();
    guest.frontend.set_mem_table(&regions).unwrap();
    let config = guest.ring_config(0);
    let good = config.used_ring_addr;
    for used in [0x10, u64::MAX - 15, good + (96 << 20)] {
        let mut config = config;
        config.used_ring_addr = used;
        guest.frontend.set_vring_num(0, 128).unwrap();
        guest.frontend.set_vring_addr(0, &config).unwrap();
        guest
            .frontend
            .set_vring_err(0, &guest.rings[0].err)
            .unwrap();
        guest.frontend.set_vring_enable(0, true).unwrap();
        guest
            .frontend
            .set_vring_kick(0, &guest.rings[0].kick)
            .unwrap();
        assert!(peer::readable(&guest.rings[0].err, peer::PATIENCE));
        let _ = guest.rings[0].err.read();
        guest.frontend.get_vring_base(0).unwrap();
    }
    drop(guest);
    still_serves(&mut backend);
}

/// A generator of the same "random" numbers every time (xorshift).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

fn message(request: u32, flags: u32, size: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes: Vec<u8> = [request, flags, size]
        .iter()
        .flat_map(|word| word.to_ne_bytes())
        .collect();
    bytes.extend_from_slice(body);
    bytes
}

#[test]
fn noise_on_the_socket_ends_its_connection_at_most() {
    let (_folder, mut backend) = server();
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    for round in 0..150 {
        let mut connection = UnixStream::connect(&backend.socket).unwrap();
        connection
            .set_write_timeout(Some(Duration::from_secs(1)))
            .unwrap();
        for _ in 0..40 {
            let body: Vec<u8> = (0..numbers.next() % 64)
                .map(|_| numbers.next() as u8)
                .collect();
            let bytes = match round % 3 {
                0 => body,
                1 => {
                    let request = (numbers.next() % 50) as u32;
                    message(request, 1, body.len() as u32, &body)
                }
                _ => {
                    let request = (numbers.next() % 50) as u32;
                    let flags = 1 | (numbers.next() as u32 & 0xc);
                    message(request, flags, numbers.next() as u32 % 8192, &body)
                }
            };
            if connection.write_all(&bytes).is_err() {
                break;
            }
        }
    }
    still_serves(&mut backend);
}

#[test]
fn a_frontend_that_stops_in_mid_message_does_not_stop_the_end() {
    let (_folder, backend) = server();
    let mut connection = UnixStream::connect(&backend.socket).unwrap();
    connection.write_all(&message(2, 1, 8, &[0; 3])).unwrap();
    end(backend);
}

#[test]
fn a_frontend_that_takes_no_answers_does_not_stop_the_end() {
    let (_folder, backend) = server();
    let mut connection = UnixStream::connect(&backend.socket).unwrap();
    connection
        .set_write_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    while connection.write_all(&message(1, 1, 0, &[])).is_ok() {}
    end(backend);
}
