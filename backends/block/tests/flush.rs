//! A flush that fails once: the guest is never told afterwards that its data is safe. Failures are made by strace, in the system call.

// clippy knows a test by its attribute, and not what a test is made of.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod peer;

use peer::{Backend, Guest, raw_image};
use virtio_bindings::virtio_blk::VIRTIO_BLK_T_FLUSH;

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
        guest.write(0, &[7; 4096]);
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
