//! A file of the image that somebody makes shorter while it is served: what was there is lost, and the guest is told.

// clippy knows a test by its attribute, and not what a test is made of.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod peer;

use std::path::{Path, PathBuf};

use peer::{Backend, Guest};
use qcow::{CreateOptions, Format};
use virtio_bindings::virtio_blk::VIRTIO_BLK_T_IN;

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
