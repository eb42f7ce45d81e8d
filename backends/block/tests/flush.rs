//! A flush that fails once: the guest is never told afterwards that its data is safe. Failures are made by strace, in the system call.

// clippy knows a test by its attribute, and not what a test is made of.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod peer;

use peer::{Backend, Guest, raw_image};
use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_OUT};

const IO_ERROR: u8 = 1;

#[test]
fn after_one_failed_flush_none_succeeds_and_the_end_is_an_error() {
    for format in ["raw", "qcow2"] {
        let (folder, raw) = raw_image(1 << 20);
        let image = match format {
            "raw" => raw,
            _ => {
                let path = folder.path().join("disk.qcow2");
                let options = qcow::CreateOptions::new(qcow::Format::Qcow2, 1 << 20);
                qcow::create(&path, &options).unwrap();
                path
            }
        };
        // The first one of each thread, of which there are few.
        let backend = Backend::start_failing("fdatasync", &image, format, &["--aio", "threads"]);
        let mut guest = Guest::connect(&backend, 1);
        // Without a journal, the making of which fails, too, this waits for a flush.
        guest.put(Guest::data(0), &[7; 4096]);
        guest.request(VIRTIO_BLK_T_OUT, 0, 4096, false);
        for attempt in 0..40 {
            let status = guest.request(VIRTIO_BLK_T_FLUSH, 0, 0, false);
            assert_eq!(status, IO_ERROR, "{format}: flush {attempt}");
        }
        drop(guest);
        let (status, said) = backend.end();
        assert_eq!(status.code(), Some(1), "{said}");
        assert!(said.contains("flush"), "{said}");
    }
}

#[test]
fn a_flush_that_failed_is_not_forgotten_when_the_backend_is_started_again() {
    let (_folder, image) = raw_image(1 << 20);
    let mut backend = Backend::start_failing("fdatasync", &image, "raw", &["--aio", "threads"]);
    let mut guest = Guest::connect(&backend, 1);
    guest.write(0, &[7; 4096]);
    assert_eq!(guest.request(VIRTIO_BLK_T_FLUSH, 0, 0, false), IO_ERROR);

    // The kernel has no error to report any more.
    backend.kill_and_restart(&image, "raw", &[]);
    guest.reconnect(&backend);
    assert_eq!(guest.request(VIRTIO_BLK_T_FLUSH, 0, 0, false), IO_ERROR);
    drop(guest);
    assert_eq!(backend.end().0.code(), Some(1));

    // Another guest starts from what is there.
    let backend = Backend::start(&image, "raw", &[]);
    let mut guest = Guest::connect(&backend, 1);
    guest.flush();
}
