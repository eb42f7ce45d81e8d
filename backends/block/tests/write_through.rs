//! A driver that does not flush: each write is made durable before it is done, and none succeeds once that has failed.

// clippy knows a test by its attribute, and not what a test is made of.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod peer;

use peer::{Backend, FLUSH, Guest, raw_image};
use vhost::VhostBackend;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};

const IO_ERROR: u8 = 1;

/// A guest whose driver has not accepted VIRTIO_BLK_F_FLUSH.
fn guest_without_flush(backend: &Backend) -> Guest {
    let mut guest = Guest::connect_only(backend, 1);
    guest.negotiate();
    let features = guest.features & !FLUSH;
    guest.frontend.set_features(features).unwrap();
    let regions = guest.regions();
    guest.frontend.set_mem_table(&regions).unwrap();
    guest.start_ring(0).unwrap();
    guest
}

#[test]
fn after_one_failed_sync_no_write_succeeds_and_what_was_written_stays_readable() {
    for way in [&["--aio", "threads"][..], &["--aio", "io_uring"], &[]] {
        let (folder, raw) = raw_image(1 << 20);
        let qcow2 = folder.path().join("disk.qcow2");
        let options = qcow::CreateOptions::new(qcow::Format::Qcow2, 1 << 20);
        qcow::create(&qcow2, &options).unwrap();
        for (image, format) in [(&raw, "raw"), (&qcow2, "qcow2")] {
            let backend = Backend::start_failing("fdatasync", image, format, way);
            let mut guest = guest_without_flush(&backend);
            guest.put(Guest::data(0), &[7; 4096]);
            for attempt in 0..20 {
                let status = guest.request(VIRTIO_BLK_T_OUT, 64, 4096, false);
                assert_eq!(status, IO_ERROR, "{format} {way:?}: write {attempt}");
            }
            // Address, length in sectors, flags.
            let range = [64u64.to_le_bytes(), 8u64.to_le_bytes()].concat();
            for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
                guest.put(Guest::data(0), &range);
                let status = guest.request(kind, 0, 16, false);
                assert_eq!(status, IO_ERROR, "{format} {way:?}: {kind}");
            }
            if format == "raw" {
                assert_eq!(guest.read(9, 512), [9; 512]);
            }
            drop(guest);
            let (status, said) = backend.end();
            assert_eq!(status.code(), Some(1), "{said}");
        }
    }
}

#[test]
fn what_was_written_before_a_flush_failed_stays_readable() {
    let (_folder, raw) = raw_image(1 << 20);
    let backend = Backend::start_failing("fdatasync", &raw, "raw", &["--aio", "threads"]);
    let mut guest = Guest::connect(&backend, 1);
    guest.write(64, &[7; 4096]);
    for _ in 0..5 {
        assert_eq!(guest.request(VIRTIO_BLK_T_FLUSH, 0, 0, false), IO_ERROR);
    }
    assert_eq!(guest.read(64, 4096), [7; 4096]);
    guest.write(72, &[8; 4096]);
    assert_eq!(guest.read(72, 4096), [8; 4096]);
    assert_eq!(guest.request(VIRTIO_BLK_T_FLUSH, 0, 0, false), IO_ERROR);
}
