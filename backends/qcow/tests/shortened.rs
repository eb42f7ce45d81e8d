//! Files that somebody else makes shorter while they are open: what is gone is an error, never zeroes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs::File;
use std::path::{Path, PathBuf};

use qcow::{CreateOptions, ErrorKind, Format, Image, OpenOptions, Preallocation};

const MIB: u64 = 1 << 20;

fn cut(path: &Path, len: u64) {
    File::options()
        .write(true)
        .open(path)
        .unwrap()
        .set_len(len)
        .unwrap();
}

fn filled_raw(path: &Path, len: u64) {
    std::fs::write(path, vec![7; len as usize]).unwrap();
}

fn qcow2(path: &Path, options: CreateOptions) -> Image {
    qcow::create(path, &options).unwrap();
    let how = OpenOptions::new(Format::Qcow2).writable(true);
    Image::open(path, &how.follow_references()).unwrap()
}

#[track_caller]
fn is_gone(image: &Image, offset: u64) {
    let error = image.read_at(offset, &mut [0; 4096]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
    assert!(error.to_string().contains("shorter"), "{error}");
}

#[track_caller]
fn reads(image: &Image, offset: u64, byte: u8) {
    let mut data = [9; 4096];
    image.read_at(offset, &mut data).unwrap();
    assert!(data == [byte; 4096], "{offset:#x} {:x?}", &data[..8]);
}

#[test]
fn a_raw_image() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    filled_raw(&path, 4 * MIB);
    let image = Image::open(&path, &OpenOptions::new(Format::Raw).writable(true)).unwrap();
    cut(&path, MIB + 2048);
    reads(&image, MIB - 4096, 7);
    // What is asked for may be there in part.
    is_gone(&image, MIB);
    is_gone(&image, 2 * MIB);
    assert!(image.map(2 * MIB, MIB).is_err());
    assert!(image.was_cut_off(0, 2 * MIB) && image.was_cut_off(0, 4 * MIB - 1));
    assert!(!image.was_cut_off(0, 4 * MIB));
}

#[test]
fn a_qcow2_image_its_data_and_its_tables() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    let image = qcow2(&path, CreateOptions::new(Format::Qcow2, 1 << 30));
    image.write_at(0, &[7; MIB as usize]).unwrap();
    // Its table is the last in the file.
    image.write_at(600 * MIB, &[8; 4096]).unwrap();
    image.close().unwrap();
    for writable in [false, true] {
        let whole = std::fs::read(&path).unwrap();
        let how = OpenOptions::new(Format::Qcow2).writable(writable);
        let image = Image::open(&path, &how).unwrap();
        cut(&path, MIB / 2);
        reads(&image, 0, 7);
        is_gone(&image, MIB - 4096);
        if !writable {
            is_gone(&image, 600 * MIB);
        }
        // What the image never held is zeroes still.
        reads(&image, 2 * MIB, 0);
        drop(image);
        std::fs::write(&path, whole).unwrap();
    }
}

#[test]
fn a_data_file_and_a_backing_file() {
    let dir = tempfile::tempdir().unwrap();
    let (data, base) = (dir.path().join("data"), dir.path().join("base"));
    let name = |path: &PathBuf| Some(path.to_str().unwrap().to_owned());
    let image = qcow2(
        &dir.path().join("external"),
        CreateOptions {
            data_file: name(&data),
            ..CreateOptions::new(Format::Qcow2, 4 * MIB)
        },
    );
    image.write_at(0, &[7; 2 * MIB as usize]).unwrap();
    cut(&data, MIB);
    reads(&image, 0, 7);
    is_gone(&image, MIB);
    assert!(image.was_cut_off(1, MIB) && !image.was_cut_off(0, MIB));

    filled_raw(&base, 2 * MIB);
    let overlay = qcow2(
        &dir.path().join("overlay"),
        CreateOptions {
            backing_file: name(&base),
            backing_format: Some(Format::Raw),
            ..CreateOptions::new(Format::Qcow2, 4 * MIB)
        },
    );
    // The overlay is longer than what it stands on.
    reads(&overlay, 3 * MIB, 0);
    cut(&base, MIB);
    reads(&overlay, 0, 7);
    is_gone(&overlay, MIB + 4096);
    reads(&overlay, 2 * MIB, 0);
    assert!(overlay.was_cut_off(1, MIB) && !overlay.was_cut_off(1, 2 * MIB));
    // A write that needs what is gone for the rest of its cluster fails, too.
    assert!(overlay.write_at(MIB + 512, &[1; 512]).is_err());
    overlay.write_at(3 * MIB, &[1; 512]).unwrap();
}

#[test]
fn what_the_image_itself_does_to_its_file_is_no_loss() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    filled_raw(&path, 4 * MIB);
    let image = Image::open(&path, &OpenOptions::new(Format::Raw).writable(true)).unwrap();
    image.resize(MIB, Preallocation::Off).unwrap();
    image.resize(3 * MIB, Preallocation::Off).unwrap();
    reads(&image, 2 * MIB, 0);
    // And what it has added since can be lost.
    image.write_at(2 * MIB, &[1; 4096]).unwrap();
    cut(&path, 2 * MIB);
    is_gone(&image, 2 * MIB);
    let path = dir.path().join("sparse");
    let image = qcow2(&path, CreateOptions::new(Format::Qcow2, 64 * MIB));
    image.write_at(0, &vec![1; 8 * MIB as usize]).unwrap();
    image.flush().unwrap();
    image.resize(MIB, Preallocation::Off).unwrap();
    image.resize(64 * MIB, Preallocation::Off).unwrap();
    for offset in [MIB, 7 * MIB, 63 * MIB] {
        reads(&image, offset, 0);
    }
    image.make_empty().unwrap();
    reads(&image, 0, 0);
}

#[test]
fn an_image_that_was_cut_off_before_it_was_opened_reads_as_in_qemu() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    let image = qcow2(&path, CreateOptions::new(Format::Qcow2, 4 * MIB));
    image.write_at(0, &[7; 2 * MIB as usize]).unwrap();
    image.close().unwrap();
    cut(&path, MIB);
    let image = Image::open(&path, &OpenOptions::new(Format::Qcow2)).unwrap();
    reads(&image, 0, 7);
    reads(&image, MIB + 4096, 0);
    assert!(!image.check(qcow::Repair::None).unwrap().is_sound());
}

type Request = fn(&Image) -> qcow::Result<()>;

/// What could make the file longer again, or hide otherwise that it was shorter.
const REQUESTS: [(&str, Request); 6] = [
    ("write", |image| image.write_at(7 * MIB, &[1; 512])),
    ("last write", |image| {
        image.write_at(8 * MIB - 512, &[1; 512])
    }),
    ("zeroes", |image| image.write_zeroes(7 * MIB, MIB, false)),
    ("holes", |image| image.write_zeroes(7 * MIB, MIB, true)),
    ("grow", |image| image.resize(9 * MIB, Preallocation::Off)),
    ("write in place", |image| image.write_at(0, &[1; 512])),
];

/// An image of 8 MiB with data in its first half, and the file that the data is in.
fn half_full(folder: &Path, kind: &str) -> (Image, PathBuf) {
    let (path, other) = (folder.join("disk"), folder.join("other"));
    let mut options = CreateOptions::new(Format::Qcow2, 8 * MIB);
    let image = match kind {
        "raw" => {
            File::create(&path).unwrap().set_len(8 * MIB).unwrap();
            Image::open(&path, &OpenOptions::new(Format::Raw).writable(true)).unwrap()
        }
        "backing" => {
            filled_raw(&other, 4 * MIB);
            options.backing_file = Some("other".to_owned());
            options.backing_format = Some(Format::Raw);
            return (qcow2(&path, options), other);
        }
        "data file" => {
            options.data_file = Some(other.to_str().unwrap().to_owned());
            qcow2(&path, options)
        }
        _ => qcow2(&path, options),
    };
    image.write_at(0, &[7; 4 * MIB as usize]).unwrap();
    image.flush().unwrap();
    let file = if kind == "data file" { other } else { path };
    (image, file)
}

#[track_caller]
fn says_that_data_is_lost<T>(result: qcow::Result<T>) {
    let error = result.err().expect("an error");
    assert!(error.to_string().contains("shorter"), "{error}");
}

#[test]
fn what_was_cut_off_is_lost_for_good_whatever_makes_the_file_longer_again() {
    for kind in ["raw", "qcow2", "data file", "backing"] {
        for (name, request) in REQUESTS {
            let folder = tempfile::tempdir().unwrap();
            let (image, file) = half_full(folder.path(), kind);
            cut(&file, MIB / 2);
            let done = request(&image);
            let length = std::fs::metadata(&file).unwrap().len();
            assert_eq!(length, MIB / 2, "{kind}: {name}: {done:?}");

            // Whatever others do.
            says_that_data_is_lost(image.flush());
            cut(&file, 9 * MIB);
            is_gone(&image, MIB);
            is_gone(&image, 4 * MIB - 4096);
            reads(&image, 4096, 7);
            if kind != "backing" {
                assert!(image.map(MIB, MIB).is_err() || kind != "raw");
                assert!(image.write_at(MIB, &[1; 512]).is_err(), "{kind}: {name}");
                assert!(!matches!(image.plan_write(0, 512), Ok(Some(_))));
            }
            assert!(image.plan_read(0, 512).unwrap().is_none());
            for _ in 0..3 {
                says_that_data_is_lost(image.flush());
                says_that_data_is_lost(image.plan_flush());
            }
            assert!(image.flush_error().is_some());
            says_that_data_is_lost(image.close());
        }
    }
}

#[test]
fn a_flush_by_other_means_looks_as_well() {
    for kind in ["raw", "qcow2", "data file", "backing"] {
        let folder = tempfile::tempdir().unwrap();
        let (image, file) = half_full(folder.path(), kind);
        drop(image.plan_flush().unwrap().map(qcow::Flush::ended));
        cut(&file, MIB / 2);
        says_that_data_is_lost(image.plan_flush());
        cut(&file, 9 * MIB);
        says_that_data_is_lost(image.plan_flush());
        says_that_data_is_lost(image.flush());
    }
}

/// As by a write that began before the file was cut.
#[test]
fn holes_of_a_file_that_was_cut_are_not_believed() {
    let folder = tempfile::tempdir().unwrap();
    let (image, file) = half_full(folder.path(), "raw");
    cut(&file, MIB / 2);
    cut(&file, 7 * MIB);
    says_that_data_is_lost(image.flush());
    is_gone(&image, MIB);
    is_gone(&image, MIB / 2 - 2048);
    reads(&image, MIB / 2 - 4096, 7);
    assert!(image.map(MIB, MIB).is_err());
    assert_eq!(image.map(0, 8 * MIB).unwrap().length, MIB / 2);
}
