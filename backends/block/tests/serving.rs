//! Reads, writes and the other requests of a guest, with the `vhost` crate as the frontend of `bulkhead-block`.

// clippy knows a test by its attribute, and not what a test is made of.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod peer;

use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};

use peer::{Backend, Guest, raw_image};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserConfigFlags;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_RO, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_SECURE_ERASE,
    VIRTIO_BLK_T_WRITE_ZEROES,
};

const SIZE: usize = 4 << 20;
const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

fn segment(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [
        &sector.to_le_bytes()[..],
        &sectors.to_le_bytes(),
        &flags.to_le_bytes(),
    ]
    .concat()
}

#[test]
fn a_disk_is_read_and_written_and_the_end_is_in_order() {
    let (_folder, image) = raw_image(SIZE);
    let backend = Backend::start(&image, "raw", &[]);
    let mut guest = Guest::connect(&backend, 1);

    assert_eq!(guest.read(5, 1024), [vec![5; 512], vec![6; 512]].concat());
    guest.write(8, &[0xab; 4096]);
    guest.flush();
    assert_eq!(guest.read(8, 4096), [0xab; 4096]);

    let content = std::fs::read(&image).unwrap();
    assert_eq!(content[8 * 512..16 * 512], [0xab; 4096]);
    assert_eq!(content.len(), SIZE);
    drop(guest);
    let (status, said) = backend.end();
    assert!(status.success(), "{status}");
    assert_eq!(said, "");
}

#[test]
fn data_may_lie_in_many_pieces_that_are_no_sectors() {
    let (_folder, image) = raw_image(SIZE);
    let backend = Backend::start(&image, "raw", &[]);
    let mut guest = Guest::connect(&backend, 1);
    let header = 0x50_0000;
    guest.put(header, &VIRTIO_BLK_T_OUT.to_le_bytes());
    guest.put(header + 8, &3u64.to_le_bytes());
    let buffer = |address, length, writable| peer::Buffer {
        address,
        length,
        writable,
    };
    guest.put(0x60_0000, &[1; 100]);
    guest.put(0x61_0001, &[2; 700]);
    guest.put(0x62_0003, &[3; 224]);

    // Header and data share a descriptor, too: nothing says where one ends. (virtio 1.2, 2.7.4)
    guest.put(header + 16, &[1; 100]);
    guest.post(
        0,
        &[
            buffer(header, 7, false),
            buffer(header + 7, 9 + 100, false),
            buffer(0x61_0001, 700, false),
            buffer(0x62_0003, 224, false),
            buffer(0x63_0000, 1, true),
        ],
    );
    guest.kick(0);
    guest.wait_used(0, 1);

    assert_eq!(guest.get(0x63_0000, 1), [OK]);
    let expected = [vec![1; 100], vec![2; 700], vec![3; 224]].concat();
    assert_eq!(guest.read(3, 1024), expected);
}

#[test]
fn the_configuration_space_and_the_serial_number_are_what_was_asked_for() {
    let (_folder, image) = raw_image(SIZE);
    let backend = Backend::start(&image, "raw", &["--serial", "disk-1", "--num-queues", "3"]);
    let mut guest = Guest::connect(&backend, 3);

    assert_eq!(guest.frontend.get_queue_num().unwrap(), 3);
    let flags = VhostUserConfigFlags::empty();
    let (_, config) = guest.frontend.get_config(0, 60, flags, &[0; 60]).unwrap();
    assert_eq!(config[..8], (SIZE as u64 / 512).to_le_bytes());
    assert_eq!(config[34..36], 3u16.to_le_bytes());

    assert_eq!(guest.request(VIRTIO_BLK_T_GET_ID, 0, 20, true), OK);
    assert_eq!(&guest.get(Guest::data(0), 20)[..8], b"disk-1\0\0");
}

#[test]
fn every_queue_is_served() {
    let (_folder, image) = raw_image(SIZE);
    let backend = Backend::start(&image, "raw", &["--num-queues", "4"]);
    let mut guest = Guest::connect(&backend, 4);

    for ring in [3, 1, 0, 2] {
        let sector = 10 + ring as u64;
        let status = guest.request_on(ring, VIRTIO_BLK_T_IN, sector, (512, true));
        assert_eq!(status, OK);
        assert_eq!(guest.get(Guest::data(0), 512), [10 + ring as u8; 512]);
    }
}

#[test]
fn space_is_given_back_and_zeroes_are_written() {
    let (_folder, image) = raw_image(SIZE);
    let before = std::fs::metadata(&image).unwrap().blocks();
    let backend = Backend::start(&image, "raw", &[]);
    let mut guest = Guest::connect(&backend, 1);

    let ranges = [segment(2048, 1024, 0), segment(4096, 1024, 0)].concat();
    guest.put(Guest::data(0), &ranges);
    let length = ranges.len() as u32;
    assert_eq!(guest.request(VIRTIO_BLK_T_DISCARD, 0, length, false), OK);
    assert_eq!(guest.read(2048, 512), [0; 512]);
    let after = std::fs::metadata(&image).unwrap().blocks();
    assert_eq!(before - after, 2048);

    for (sector, flags) in [(100, 0), (200, 1)] {
        guest.put(Guest::data(0), &segment(sector, 3, flags));
        assert_eq!(guest.request(VIRTIO_BLK_T_WRITE_ZEROES, 0, 16, false), OK);
        assert_eq!(guest.read(sector, 512 * 3), [0; 512 * 3]);
        assert_eq!(guest.read(sector + 3, 512), [(sector + 3) as u8; 512]);
    }
}

#[test]
fn a_request_that_makes_no_sense_fails_alone() {
    let (_folder, image) = raw_image(SIZE);
    let backend = Backend::start(&image, "raw", &[]);
    let mut guest = Guest::connect(&backend, 1);
    let sectors = SIZE as u64 / 512;

    let cases = [
        (VIRTIO_BLK_T_IN, sectors, 512, true, IO_ERROR),
        (VIRTIO_BLK_T_IN, sectors - 1, 1024, true, IO_ERROR),
        (VIRTIO_BLK_T_IN, u64::MAX, 512, true, IO_ERROR),
        (VIRTIO_BLK_T_IN, u64::MAX / 512, 512, true, IO_ERROR),
        (VIRTIO_BLK_T_IN, 0, 100, true, IO_ERROR),
        (VIRTIO_BLK_T_OUT, sectors, 512, false, IO_ERROR),
        (VIRTIO_BLK_T_OUT, 0, 511, false, IO_ERROR),
        (VIRTIO_BLK_T_SECURE_ERASE, 0, 16, false, UNSUPPORTED),
        (0xdead_beef, 0, 0, false, UNSUPPORTED),
        (VIRTIO_BLK_T_DISCARD, 0, 0, false, IO_ERROR),
        (VIRTIO_BLK_T_DISCARD, 0, 15, false, IO_ERROR),
        (VIRTIO_BLK_T_DISCARD, 0, 17 * 16, false, IO_ERROR),
    ];
    for (kind, sector, length, is_in, expected) in cases {
        let status = guest.request(kind, sector, length, is_in);
        assert_eq!(status, expected, "{kind} {sector} {length}");
    }
    let ranges = [
        (VIRTIO_BLK_T_DISCARD, segment(0, 8, 1), UNSUPPORTED),
        (VIRTIO_BLK_T_DISCARD, segment(sectors, 1, 0), IO_ERROR),
        (VIRTIO_BLK_T_DISCARD, segment(u64::MAX, 1, 0), IO_ERROR),
        (VIRTIO_BLK_T_DISCARD, segment(0, u32::MAX, 0), IO_ERROR),
        (VIRTIO_BLK_T_WRITE_ZEROES, segment(0, 8, 2), UNSUPPORTED),
        (
            VIRTIO_BLK_T_WRITE_ZEROES,
            segment(sectors - 1, 2, 0),
            IO_ERROR,
        ),
    ];
    for (kind, range, expected) in ranges {
        guest.put(Guest::data(0), &range);
        assert_eq!(guest.request(kind, 0, 16, false), expected, "{range:?}");
    }

    let (_copy, untouched) = raw_image(SIZE);
    assert_eq!(
        std::fs::read(&image).unwrap(),
        std::fs::read(untouched).unwrap()
    );
    assert_eq!(guest.read(5, 512), [5; 512]);
}

#[test]
fn a_disk_that_is_read_only_cannot_be_changed() {
    let (_folder, image) = raw_image(SIZE);
    let backend = Backend::start(&image, "raw", &["--read-only"]);
    let mut guest = Guest::connect(&backend, 1);

    assert_ne!(guest.features & (1 << VIRTIO_BLK_F_RO), 0);
    assert_eq!(guest.features & (1 << VIRTIO_BLK_F_DISCARD), 0);
    assert_eq!(guest.request(VIRTIO_BLK_T_OUT, 0, 512, false), IO_ERROR);
    guest.put(Guest::data(0), &segment(0, 8, 0));
    for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
        assert_eq!(guest.request(kind, 0, 16, false), IO_ERROR);
    }
    assert_eq!(guest.request(VIRTIO_BLK_T_FLUSH, 0, 0, false), OK);
    assert_eq!(guest.read(7, 512), [7; 512]);
}

#[test]
fn a_ring_stops_where_it_was_and_goes_on_from_there() {
    let (_folder, image) = raw_image(SIZE);
    let backend = Backend::start(&image, "raw", &[]);
    let mut guest = Guest::connect(&backend, 1);
    for sector in 0..5 {
        guest.read(sector, 512);
    }

    assert_eq!(guest.frontend.get_vring_base(0).unwrap(), 5);
    // A stopped ring is left alone.
    guest.post_block(0, 1, (VIRTIO_BLK_T_IN, 9), (512, true));
    guest.kick(0);
    guest.frontend.get_features().unwrap();
    assert_eq!(guest.used_index(0), 5);

    // What was made available meanwhile is found without another kick.
    guest.rings[0].kick.read().unwrap();
    guest.start_ring(0).unwrap();
    guest.wait_used(0, 1);
    assert_eq!(guest.get(Guest::data(1), 512), [9; 512]);
}

#[test]
fn memory_comes_and_goes_in_slots() {
    let (_folder, image) = raw_image(SIZE);
    let backend = Backend::start(&image, "raw", &[]);
    let mut guest = Guest::connect_only(&backend, 1);
    guest.negotiate();
    assert!(guest.frontend.get_max_mem_slots().unwrap() >= 32);
    let region = guest.regions().remove(0);

    guest.frontend.add_mem_region(&region).unwrap();
    guest.start_ring(0).unwrap();
    assert_eq!(guest.read(7, 512), [7; 512]);

    guest.frontend.remove_mem_region(&region).unwrap();
    guest.frontend.remove_mem_region(&region).unwrap_err();
    guest.frontend.add_mem_region(&region).unwrap();
    assert_eq!(guest.read(8, 512), [8; 512]);
}

#[test]
fn a_server_that_persists_serves_one_frontend_after_another() {
    let (_folder, image) = raw_image(SIZE);
    let backend = Backend::start(&image, "raw", &["--persist"]);
    for round in 1..=3 {
        let mut guest = Guest::connect(&backend, 1);
        guest.write(0, &[round; 512]);
        assert_eq!(guest.read(0, 512), [round; 512]);
    }
    assert!(backend.socket.exists());

    let pid = rustix::process::Pid::from_child(&backend.child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let (status, said) = backend.end();
    assert!(status.success(), "{status}: {said}");
}

#[test]
fn a_server_ends_in_order_on_sigterm() {
    for signal in [rustix::process::Signal::TERM, rustix::process::Signal::INT] {
        let (_folder, image) = raw_image(SIZE);
        let backend = Backend::start(&image, "raw", &[]);
        let pid = rustix::process::Pid::from_child(&backend.child);
        let mut guest = Guest::connect(&backend, 1);
        guest.write(0, &[1; 512]);

        rustix::process::kill_process(pid, signal).unwrap();

        let (status, said) = backend.end();
        assert!(status.success(), "{status}: {said}");
        assert_eq!(std::fs::read(&image).unwrap()[..512], [1; 512]);
    }
}

#[test]
fn an_inherited_socket_serves_as_well() {
    use std::os::fd::AsRawFd;
    let (folder, image) = raw_image(SIZE);
    let path = folder.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let connection = UnixStream::connect(&path).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    rustix::io::fcntl_setfd(&accepted, rustix::io::FdFlags::empty()).unwrap();

    let mut child = peer::program()
        .arg(format!("--fd={}", accepted.as_raw_fd()))
        .arg("--blk-file")
        .arg(&image)
        .args(["--format", "raw"])
        .spawn()
        .unwrap();
    drop(accepted);
    let frontend = vhost::vhost_user::Frontend::from_stream(connection, 1);
    frontend.set_owner().unwrap();
    assert_ne!(frontend.get_features().unwrap(), 0);

    drop(frontend);
    assert!(peer::wait(&mut child).success());
}

/// A generator of the same "random" numbers every time (xorshift).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// Does random requests on `image`, several at once, and the same to `model`; what is read must be what is in the
/// model.
fn random_requests(image: &std::path::Path, format: &str, model: &mut [u8], seed: u64) {
    let backend = Backend::start(image, format, &["--num-queues", "2"]);
    let mut guest = Guest::connect(&backend, 2);
    let mut numbers = Numbers(seed);
    let sectors = model.len() as u64 / 512;
    for step in 0..800u64 {
        let ring = numbers.below(2) as usize;
        let count = 1 + numbers.below(200);
        let sector = numbers.below(sectors - count);
        let range = sector as usize * 512..(sector + count) as usize * 512;
        let length = count as u32 * 512;
        match numbers.below(8) {
            0..3 => {
                let data: Vec<u8> = (0..length)
                    .map(|at| (u64::from(at) * 7 + step) as u8)
                    .collect();
                guest.put(Guest::data(0), &data);
                let status = guest.request_on(ring, VIRTIO_BLK_T_OUT, sector, (length, false));
                assert_eq!(status, OK);
                model[range].copy_from_slice(&data);
            }
            3..6 => {
                let status = guest.request_on(ring, VIRTIO_BLK_T_IN, sector, (length, true));
                assert_eq!(status, OK);
                assert!(
                    guest.get(Guest::data(0), length as usize) == model[range],
                    "{step}"
                );
            }
            6 => {
                guest.put(
                    Guest::data(0),
                    &segment(sector, count as u32, step as u32 % 2),
                );
                let status = guest.request_on(ring, VIRTIO_BLK_T_WRITE_ZEROES, 0, (16, false));
                assert_eq!(status, OK);
                model[range].fill(0);
            }
            _ => guest.flush(),
        }
    }
    drop(guest);
    let (status, said) = backend.end();
    assert!(status.success() && said.is_empty(), "{status}: {said}");
}

#[test]
fn random_requests_do_to_the_disk_what_they_do_to_a_model() {
    let folder = tempfile::tempdir().unwrap();
    let content: Vec<u8> = (0..SIZE).map(|at| (at / 300) as u8).collect();
    let base = folder.path().join("base.raw");
    std::fs::write(&base, &content).unwrap();
    for (cluster_size, extended_l2) in [(512, false), (65536, false), (65536, true)] {
        let image = folder.path().join(format!("{cluster_size}-{extended_l2}"));
        let mut options = qcow::CreateOptions::new(qcow::Format::Qcow2, SIZE as u64);
        options.backing_file = Some("base.raw".to_owned());
        options.backing_format = Some(qcow::Format::Raw);
        options.cluster_size = cluster_size;
        options.extended_l2 = extended_l2;
        qcow::create(&image, &options).unwrap();
        let mut model = content.clone();
        random_requests(&image, "qcow2", &mut model, 1 + cluster_size);

        let options = qcow::OpenOptions::new(qcow::Format::Qcow2).follow_references();
        let disk = qcow::Image::open(&image, &options).unwrap();
        let mut seen = vec![0; SIZE];
        disk.read_at(0, &mut seen).unwrap();
        assert!(seen == model, "{cluster_size} {extended_l2}");
    }
    assert!(std::fs::read(&base).unwrap() == content);
    let mut model = content;
    random_requests(&base, "raw", &mut model, 42);
    assert!(std::fs::read(&base).unwrap() == model);
}
