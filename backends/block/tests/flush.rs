//! A flush fails once: no later flush of the guest succeeds. Failures are made by strace, in the system call,
//! or by a medium that has less space than it says, for what strace does not see: the operations of an io_uring.

#![allow(
    clippy::disallowed_macros,
    reason = "a test reports to whoever runs it"
)]
// clippy knows a test by its attribute, and not what a test is made of.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod peer;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;

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

/// A block device that has space for a small part of what is written to it: to the page cache all of it can be written,
/// and not beyond.
struct Thin {
    device: PathBuf,
    _folder: tempfile::TempDir,
}

impl Thin {
    /// `None` where there are no loop devices.
    fn new() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("at")).unwrap();
        // The file system has no name, and goes with the device.
        let made = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c"])
            .arg(
                "mount -t tmpfs -o size=1M none at && truncate -s 16M at/medium && \
                 losetup --find --show at/medium",
            )
            .current_dir(folder.path())
            .output()
            .unwrap();
        if !made.status.success() {
            eprintln!("skipped: no loop devices here: {made:?}");
            return None;
        }
        let device = String::from_utf8(made.stdout).unwrap();
        Some(Self {
            device: device.trim().into(),
            _folder: folder,
        })
    }
}

impl Drop for Thin {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.device).status();
    }
}

#[test]
fn a_medium_that_fails_once_is_not_trusted_again_by_whatever_way_it_is_synced() {
    for format in ["raw", "qcow2"] {
        for way in [&["--aio", "io_uring"][..], &["--aio", "threads"], &[]] {
            let Some(medium) = Thin::new() else {
                return;
            };
            if format == "qcow2" {
                let folder = tempfile::tempdir().unwrap();
                let path = folder.path().join("disk");
                let options = qcow::CreateOptions::new(qcow::Format::Qcow2, 8 << 20);
                qcow::create(&path, &options).unwrap();
                let image = std::fs::read(path).unwrap();
                let device = File::options().write(true).open(&medium.device).unwrap();
                device.write_all_at(&image, 0).unwrap();
                device.sync_all().unwrap();
            }
            let backend = Backend::start(&medium.device, format, way);
            let mut guest = Guest::connect(&backend, 1);
            for part in 0..16 {
                guest.put(Guest::data(0), &[7; 256 << 10]);
                guest.request(VIRTIO_BLK_T_OUT, part * 512, 256 << 10, false);
            }
            for attempt in 0..5 {
                let status = guest.request(VIRTIO_BLK_T_FLUSH, 0, 0, false);
                assert_eq!(status, IO_ERROR, "{format} {way:?}: flush {attempt}");
            }
            drop(guest);
            let (status, said) = backend.end();
            assert_eq!(status.code(), Some(1), "{format} {way:?}: {said}");
            assert!(said.contains("flush error"), "{format} {way:?}: {said}");
        }
    }
}

/// What the test above is about: the system's own answers.
#[test]
fn the_kernel_reports_a_medium_that_failed_once() {
    let Some(medium) = Thin::new() else {
        return;
    };
    let device = File::options().write(true).open(&medium.device).unwrap();
    device.write_all_at(&[7; 4 << 20], 0).unwrap();
    device.sync_data().unwrap_err();
    device.sync_data().unwrap();
}
