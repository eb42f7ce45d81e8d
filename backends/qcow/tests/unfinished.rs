//! Images that are not finished: in a file without a name, or marked while their content is replaced.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

use std::sync::Arc;

use qcow::{CreateOptions, ErrorKind, Format, Image, OpenOptions, Preallocation, Repair};

const MIB: u64 = 1 << 20;

#[test]
fn an_image_is_made_in_a_file_that_has_no_name() {
    let dir = tempfile::tempdir().unwrap();
    let name = dir.path().join("disk");
    for format in [Format::Raw, Format::Qcow2] {
        for preallocation in [Preallocation::Off, Preallocation::Full] {
            let file = Arc::new(tempfile::tempfile().unwrap());
            let mut options = CreateOptions::new(format, MIB);
            options.preallocation = preallocation;

            qcow::create_file(&file, &name, &options).unwrap();

            let writable = OpenOptions::new(format).writable(true);
            let image = Image::open_file(file, &name, &writable).unwrap();
            assert_eq!(image.virtual_size(), MIB);
            image.write_at(0, b"data").unwrap();
            image.close().unwrap();
            assert!(!name.exists());
        }
    }
}

#[test]
fn who_meets_an_incomplete_image_is_told_and_cannot_write_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    let writable = OpenOptions::new(Format::Qcow2).writable(true);
    qcow::create(&path, &CreateOptions::new(Format::Qcow2, MIB)).unwrap();
    let image = Image::open(&path, &writable).unwrap();
    assert!(image.set_incomplete(true).unwrap());
    image.write_at(0, b"half of").unwrap();
    image.close().unwrap();

    let refused = Image::open(&path, &writable).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Corrupt, "{refused}");
    let read_only = Image::open(&path, &OpenOptions::new(Format::Qcow2)).unwrap();
    assert!(read_only.info().unwrap().qcow2.unwrap().corrupt);
    drop(read_only);

    let repaired = Image::open(&path, &writable.clone().for_check(true)).unwrap();
    assert!(repaired.check(Repair::All).unwrap().is_sound());
    repaired.close().unwrap();
    let image = Image::open(&path, &writable).unwrap();
    assert!(!image.info().unwrap().qcow2.unwrap().corrupt);
    image.set_incomplete(true).unwrap();
    image.set_incomplete(false).unwrap();
    image.close().unwrap();
    Image::open(&path, &writable).unwrap().close().unwrap();
}

#[test]
fn raw_images_and_version_2_cannot_say_that_they_are_incomplete() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    let mut v2 = CreateOptions::new(Format::Qcow2, MIB);
    v2.version = 2;
    for options in [v2, CreateOptions::new(Format::Raw, MIB)] {
        qcow::create(&path, &options).unwrap();
        let writable = OpenOptions::new(options.format).writable(true);
        let image = Image::open(&path, &writable).unwrap();

        assert!(!image.set_incomplete(true).unwrap());

        image.close().unwrap();
        Image::open(&path, &writable).unwrap().close().unwrap();
    }
}
