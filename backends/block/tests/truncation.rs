//! A frontend that truncates memory it shares: it loses its connection, and nobody else notices.

// clippy knows a test by its attribute, and not what a test is made of.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod peer;

use std::time::Instant;

use peer::{Backend, Guest, PATIENCE, raw_image};
use vhost::VhostBackend;
use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};
use vm_memory::GuestMemoryBackend;

fn server(more: &[&str]) -> (tempfile::TempDir, Backend) {
    let (folder, image) = raw_image(1 << 20);
    let mut args = vec!["--persist"];
    args.extend(more);
    let backend = Backend::start(&image, "raw", &args);
    (folder, backend)
}

/// The guest's memory has only `length` bytes from now on.
fn truncate(guest: &Guest, length: u64) {
    let region = guest.memory.iter().next().unwrap();
    let file = vm_memory::GuestMemoryRegion::file_offset(region).unwrap();
    file.file().set_len(length).unwrap();
}

/// Waits until the server has hung up on `guest`.
fn is_disconnected(guest: &mut Guest) {
    let start = Instant::now();
    while guest.frontend.get_features().is_ok() {
        assert!(start.elapsed() < PATIENCE, "it is still connected");
        std::thread::yield_now();
    }
}

/// The same process serves another frontend, and said what was wrong in one line.
fn serves_the_next(mut backend: Backend, pid: u32) {
    let mut guest = Guest::connect(&backend, 2);
    assert_eq!(guest.read(9, 512), [9; 512]);
    guest.write(9, &[1; 512]);
    guest.flush();
    drop(guest);
    assert!(backend.is_running());
    assert_eq!(backend.child.id(), pid);
    let id = rustix::process::Pid::from_child(&backend.child);
    rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
    let (status, said) = backend.end();
    assert!(status.success(), "{status}: {said}");
    let lines = said.matches("the vhost-user frontend: it has truncated memory");
    assert_eq!(lines.count(), 1, "{said}");
}

const VARIANTS: [&[&str]; 4] = [
    &["--num-queues", "2", "--aio", "threads"],
    &["--num-queues", "2", "--aio", "io_uring"],
    &["--num-queues", "2"],
    &["--num-queues", "1"],
];

#[test]
fn guest_memory_that_goes_while_nothing_happens_costs_the_connection() {
    for more in VARIANTS {
        let (_folder, backend) = server(more);
        let pid = backend.child.id();
        let rings = if more.contains(&"2") { 2 } else { 1 };
        let mut guest = Guest::connect(&backend, rings);
        assert_eq!(guest.read(5, 512), [5; 512]);
        truncate(&guest, 0);
        guest.frontend.get_features().unwrap();
        guest.kick(0);
        is_disconnected(&mut guest);
        if rings == 2 {
            serves_the_next(backend, pid);
        }
    }
}

#[test]
fn guest_memory_that_goes_under_load_costs_the_connection() {
    // Whether requests are under way, done, or seen to be done when it happens is a matter of luck.
    for more in [VARIANTS; 4].as_flattened() {
        for kind in [VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT] {
            let (_folder, backend) = server(more);
            let pid = backend.child.id();
            let rings = if more.contains(&"2") { 2 } else { 1 };
            let mut guest = Guest::connect(&backend, rings);
            for slot in 0..40 {
                for ring in 0..rings {
                    let length = 256 << 10;
                    let (slot, is_in) = (slot * 2 + ring as u64, kind == VIRTIO_BLK_T_IN);
                    guest.post_block(ring, slot, (kind, 1024), (length, is_in));
                }
            }
            (0..rings).for_each(|ring| guest.kick(ring));
            // The rings stay, most data goes, and then everything.
            truncate(&guest, 20 << 20);
            truncate(&guest, 0);
            (0..rings).for_each(|ring| guest.kick(ring));
            is_disconnected(&mut guest);
            if rings == 2 {
                serves_the_next(backend, pid);
            }
        }
    }
}

#[test]
fn data_that_is_gone_is_an_error_of_its_request_where_the_rings_are_still_there() {
    for more in &VARIANTS[..3] {
        for kind in [VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT] {
            let (_folder, backend) = server(more);
            let mut guest = Guest::connect(&backend, 2);
            let header = 0x50_0000;
            let buffer = |address, length, writable| peer::Buffer {
                address,
                length,
                writable,
            };
            guest.put(header, &kind.to_le_bytes());
            guest.put(header + 4, &[0; 12]);
            truncate(&guest, 64 << 20);
            let data = buffer(80 << 20, 4096, kind == VIRTIO_BLK_T_IN);
            guest.post(
                0,
                &[
                    buffer(header, 16, false),
                    data,
                    buffer(header + 16, 1, true),
                ],
            );
            guest.kick(0);
            // The kernel found it missing, or this process did.
            let start = Instant::now();
            while guest.used_index(0) == 0 && guest.frontend.get_features().is_ok() {
                assert!(start.elapsed() < PATIENCE);
            }
            if guest.used_index(0) == 1 {
                assert_eq!(guest.get(header + 16, 1), [1], "{more:?}");
            }
        }
    }
}

#[test]
fn an_in_flight_area_that_goes_costs_the_connection() {
    use std::os::fd::AsRawFd;
    use vhost::vhost_user::VhostUserFrontend;
    use vhost::vhost_user::message::VhostUserInflight;
    for under_load in [false, true] {
        let (_folder, backend) = server(&["--num-queues", "2"]);
        let pid = backend.child.id();
        let mut guest = Guest::connect_only(&backend, 2);
        guest.negotiate();
        // Ours is sealed; a frontend may have one of its own making.
        let area = rustix::fs::memfd_create("area", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&area, 1 << 20).unwrap();
        let layout = VhostUserInflight::new(1 << 20, 0, 2, peer::RING_SIZE);
        guest
            .frontend
            .set_inflight_fd(&layout, area.as_raw_fd())
            .unwrap();
        let regions = guest.regions();
        guest.frontend.set_mem_table(&regions).unwrap();
        for ring in 0..2 {
            guest.start_ring(ring).unwrap();
        }
        assert_eq!(guest.read(5, 512), [5; 512]);
        if under_load {
            for slot in 0..40 {
                guest.post_block(0, slot, (VIRTIO_BLK_T_IN, 0), (256 << 10, true));
            }
            guest.kick(0);
        }
        rustix::fs::ftruncate(&area, 0).unwrap();
        guest.post_block(1, 50, (VIRTIO_BLK_T_IN, 0), (512, true));
        guest.kick(1);
        is_disconnected(&mut guest);
        serves_the_next(backend, pid);
    }
}
