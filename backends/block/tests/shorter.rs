//! Another process makes a file of the image shorter while it is served: data is lost, and the guest gets errors.

// clippy knows a test by its attribute, and not what a test is made of.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod peer;

use std::path::{Path, PathBuf};

use peer::{Backend, Guest};
use qcow::{CreateOptions, Format};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};

const SIZE: u64 = 4 << 20;
const IO_ERROR: u8 = 1;
const WAYS: [&[&str]; 3] = [&["--aio", "threads"], &["--aio", "io_uring"], &[]];

/// An image, and the file that its data is in.
fn image(folder: &Path, kind: &str) -> (PathBuf, PathBuf, &'static str) {
    let raw = folder.join("disk.raw");
    std::fs::write(&raw, vec![1u8; 1 << 20]).unwrap();
    let qcow2 = folder.join("disk.qcow2");
    let mut options = CreateOptions::new(Format::Qcow2, SIZE);
    match kind {
        "raw" => return (raw.clone(), raw, "raw"),
        "qcow2" => {
            qcow::create(&qcow2, &options).unwrap();
            return (qcow2.clone(), qcow2, "qcow2");
        }
        "backing" => {
            options.backing_file = Some("disk.raw".to_owned());
            options.backing_format = Some(Format::Raw);
        }
        _ => options.data_file = Some(raw.to_str().unwrap().to_owned()),
    }
    qcow::create(&qcow2, &options).unwrap();
    (qcow2, raw, "qcow2")
}

#[test]
fn data_that_was_cut_off_is_an_error_and_no_zeroes() {
    for kind in ["raw", "qcow2", "backing", "data file"] {
        for way in WAYS {
            let folder = tempfile::tempdir().unwrap();
            let (image, file, format) = image(folder.path(), kind);
            let backend = Backend::start(&image, format, way);
            let mut guest = Guest::connect(&backend, 1);
            if kind != "backing" {
                guest.write(0, &vec![1; 256 << 10]);
                guest.write(512, &vec![1; 256 << 10]);
                guest.write(1024, &vec![1; 256 << 10]);
                guest.write(1536, &vec![1; 256 << 10]);
                guest.flush();
            }
            // A data file is as long as the disk, whatever was written.
            let length = match kind {
                "data file" => 1 << 20,
                _ => std::fs::metadata(&file).unwrap().len(),
            };
            let shorter = std::fs::File::options().write(true).open(&file).unwrap();
            shorter.set_len(length - (256 << 10) - 1024).unwrap();

            let what = format!("{kind} {way:?}");
            for (sector, sectors) in [(1536, 8), (2047, 1), (1536, 512), (1530, 16)] {
                let status = guest.request(VIRTIO_BLK_T_IN, sector, sectors * 512, true);
                assert_eq!(status, IO_ERROR, "{what}: {sectors} at {sector}");
            }
            assert_eq!(guest.read(0, 256 << 10), vec![1; 256 << 10], "{what}");
            if format == "qcow2" {
                assert_eq!(guest.read(4096, 4096), [0; 4096], "{what}");
            }
        }
    }
}

#[test]
fn a_backing_file_that_always_was_shorter_ends_in_zeroes() {
    for way in WAYS {
        let folder = tempfile::tempdir().unwrap();
        let (image, file, format) = image(folder.path(), "backing");
        std::fs::write(file, vec![1u8; 700]).unwrap();
        let backend = Backend::start(&image, format, way);
        let mut guest = Guest::connect(&backend, 1);
        let expected = [vec![1; 700], vec![0; 4096 - 700]].concat();
        assert_eq!(guest.read(0, 4096), expected, "{way:?}");
        assert_eq!(guest.read(1, 512)[..188], [1; 188]);
        assert_eq!(guest.read(2, 512), [0; 512]);
    }
}

/// The segment of a discard or of zeroes: 7 MiB to 8 MiB.
fn last_mebibyte(flags: u32) -> Vec<u8> {
    let words = [
        14336u64.to_le_bytes(),
        (u64::from(flags) << 32 | 2048).to_le_bytes(),
    ];
    words.concat()
}

/// A disk of 8 MiB, and the file that its data is in; for a backing file its first half, which the disk has not yet.
fn eight_mebibytes(folder: &Path, kind: &str) -> (PathBuf, PathBuf, &'static str) {
    let (raw, qcow2) = (folder.join("disk.raw"), folder.join("disk.qcow2"));
    let mut options = CreateOptions::new(Format::Qcow2, 8 << 20);
    match kind {
        "raw" => {
            std::fs::File::create(&raw)
                .unwrap()
                .set_len(8 << 20)
                .unwrap();
            return (raw.clone(), raw, "raw");
        }
        "backing" => {
            std::fs::write(&raw, vec![5u8; 4 << 20]).unwrap();
            options.backing_file = Some("disk.raw".to_owned());
            options.backing_format = Some(Format::Raw);
        }
        "data file" => options.data_file = Some(raw.to_str().unwrap().to_owned()),
        _ => {}
    }
    qcow::create(&qcow2, &options).unwrap();
    let file = if kind == "qcow2" { &qcow2 } else { &raw };
    (qcow2.clone(), file.clone(), "qcow2")
}

/// Requests that would make the file longer again, or seem to succeed on a file that has lost data.
const REQUESTS: [(u32, u32); 4] = [
    (VIRTIO_BLK_T_OUT, 0),
    (VIRTIO_BLK_T_WRITE_ZEROES, 0),
    (VIRTIO_BLK_T_WRITE_ZEROES, 1),
    (VIRTIO_BLK_T_DISCARD, 0),
];

#[test]
fn no_request_turns_what_was_cut_off_into_zeroes_and_no_flush_succeeds_any_more() {
    for kind in ["raw", "qcow2", "data file", "backing"] {
        for (request, flags) in REQUESTS {
            for way in WAYS {
                let folder = tempfile::tempdir().unwrap();
                let (image, file, format) = eight_mebibytes(folder.path(), kind);
                let backend = Backend::start(&image, format, way);
                let mut guest = Guest::connect(&backend, 1);
                if kind != "backing" {
                    for part in 0..16 {
                        guest.write(part * 512, &[5; 256 << 10]);
                    }
                }
                guest.flush();
                let shorter = std::fs::File::options().write(true).open(&file).unwrap();
                shorter.set_len(512 << 10).unwrap();

                let what = format!("{kind} {request} {flags} {way:?}");
                match request {
                    VIRTIO_BLK_T_OUT => {
                        guest.put(Guest::data(0), &[6; 512]);
                        guest.request(request, 14336, 512, false);
                    }
                    _ => {
                        guest.put(Guest::data(0), &last_mebibyte(flags));
                        guest.request(request, 0, 16, false);
                    }
                }
                // A request that changes only tables has not accessed the file.
                let has_met = match kind {
                    "raw" => true,
                    "backing" => false,
                    _ => request == VIRTIO_BLK_T_OUT,
                };
                if !has_met {
                    let status = guest.request(VIRTIO_BLK_T_FLUSH, 0, 0, false);
                    assert_eq!(status, IO_ERROR, "{what}");
                }
                // Whoever makes it longer again.
                shorter.set_len(9 << 20).unwrap();
                check_loss(&mut guest, &what);
                drop(guest);
                let (status, said) = backend.end();
                assert_eq!(status.code(), Some(1), "{what}: {said}");
                assert!(said.contains("shorter"), "{what}: {said}");
            }
        }
    }
}

fn check_loss(guest: &mut Guest, what: &str) {
    let status = guest.request(VIRTIO_BLK_T_IN, 2048, 512, true);
    assert_eq!(status, IO_ERROR, "{what}");
    for _ in 0..3 {
        let status = guest.request(VIRTIO_BLK_T_FLUSH, 0, 0, false);
        assert_eq!(status, IO_ERROR, "{what}");
    }
    assert_eq!(guest.read(0, 4096), vec![5; 4096], "{what}");
}

#[test]
fn a_loss_is_not_forgotten_when_the_backend_is_started_again() {
    for way in WAYS {
        let folder = tempfile::tempdir().unwrap();
        let (image, file, format) = eight_mebibytes(folder.path(), "raw");
        let mut backend = Backend::start(&image, format, way);
        let mut guest = Guest::connect(&backend, 1);
        guest.write(2048, &[5; 4096]);
        guest.flush();
        let shorter = std::fs::File::options().write(true).open(&file).unwrap();
        shorter.set_len(512 << 10).unwrap();
        let status = guest.request(VIRTIO_BLK_T_IN, 2048, 512, true);
        assert_eq!(status, IO_ERROR);
        shorter.set_len(8 << 20).unwrap();
        backend.kill_and_restart(&image, format, way);
        guest.reconnect(&backend);
        let status = guest.request(VIRTIO_BLK_T_FLUSH, 0, 0, false);
        assert_eq!(status, IO_ERROR, "{way:?}");
    }
}

#[test]
fn a_file_that_is_cut_under_load_never_reads_as_zeroes() {
    const SECTORS: u64 = 16384;
    for way in WAYS {
        for round in 0..8 {
            let folder = tempfile::tempdir().unwrap();
            let image = folder.path().join("disk.raw");
            std::fs::write(&image, vec![5u8; 8 << 20]).unwrap();
            let backend = Backend::start(&image, "raw", way);
            let mut guest = Guest::connect(&backend, 1);
            let shorter = std::fs::File::options().write(true).open(&image).unwrap();
            // Every other request writes what is there already; none reaches the end of the file.
            for slot in 0..40 {
                let sector = (slot * 4093 + round * 977) % (SECTORS - 64);
                let is_read = slot % 2 == 0;
                let kind = if is_read {
                    VIRTIO_BLK_T_IN
                } else {
                    VIRTIO_BLK_T_OUT
                };
                guest.put(Guest::data(slot), &[5; 4096]);
                guest.post_block(0, slot, (kind, sector), (4096, is_read));
            }
            guest.kick(0);
            shorter.set_len(512 << 10).unwrap();
            guest.wait_used(0, 40);
            for slot in (0..40).step_by(2).filter(|&slot| guest.status(slot) == 0) {
                assert!(guest.get(Guest::data(slot), 4096) == [5; 4096], "{way:?}");
            }
            let flush = guest.request(VIRTIO_BLK_T_FLUSH, 0, 0, false);
            assert_eq!(flush, IO_ERROR, "{way:?}");
            for sector in (0..SECTORS).step_by(512) {
                let status = guest.request(VIRTIO_BLK_T_IN, sector, 256 << 10, true);
                let read = guest.get(Guest::data(0), 256 << 10);
                assert!(status == IO_ERROR || read == vec![5; 256 << 10], "{way:?}");
            }
        }
    }
}
