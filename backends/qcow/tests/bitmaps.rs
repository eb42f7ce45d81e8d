//! Persistent dirty bitmaps, ours and QEMU's.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod peer;

use std::path::{Path, PathBuf};

use peer::{check, qemu_img, qemu_io, text};
use qcow::{CreateOptions, ErrorKind, Format, Image, OpenOptions, Preallocation};

fn image(dir: &Path) -> PathBuf {
    let path = dir.join("disk.qcow2");
    qcow::create(&path, &CreateOptions::new(Format::Qcow2, 8 << 20)).unwrap();
    path
}

fn open(path: &Path) -> Image {
    Image::open(path, &OpenOptions::new(Format::Qcow2).writable(true)).unwrap()
}

fn dirty(disk: &Image, bitmap: &str) -> Vec<(u64, u64)> {
    disk.bitmap_ranges(bitmap).unwrap().collect()
}

#[test]
fn a_bitmap_records_what_is_written_while_it_is_enabled() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path());
    let disk = open(&path);
    disk.bitmap_add("b", Some(65536), true).unwrap();
    disk.write_at(3 << 20, &[1; 100]).unwrap();
    disk.write_zeroes(5 << 20, 65537, true).unwrap();
    disk.bitmap_enable("b", false).unwrap();
    disk.write_at(0, &[1; 100]).unwrap();
    disk.close().unwrap();
    check(&path);
    let disk = open(&path);
    assert_eq!(
        dirty(&disk, "b"),
        vec![(3 << 20, 65536), (5 << 20, 131_072)]
    );
    disk.bitmap_clear("b").unwrap();
    assert_eq!(dirty(&disk, "b"), vec![]);
    disk.close().unwrap();
    check(&path);
}

#[test]
fn bits_that_qemu_sets_are_read_and_bits_that_we_set_are_known_to_qemu() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path());
    qemu_img(&["bitmap", "--add", "-g", "64k", text(&path), "theirs"]);
    qemu_io(
        &path,
        &["write -P 7 1M 64k".into(), "write -P 7 7M 100k".into()],
    );
    let disk = open(&path);
    assert_eq!(
        dirty(&disk, "theirs"),
        vec![(1 << 20, 65536), (7 << 20, 131_072)]
    );
    disk.bitmap_add("ours", Some(65536), true).unwrap();
    disk.write_at(2 << 20, &[1]).unwrap();
    disk.close().unwrap();
    check(&path);
    // QEMU merges ours into a new one of its own, which we read again.
    qemu_img(&[
        "bitmap",
        "--add",
        "-g",
        "64k",
        "--disable",
        text(&path),
        "copy",
    ]);
    qemu_img(&["bitmap", "--merge", "ours", text(&path), "copy"]);
    let disk = open(&path);
    assert_eq!(dirty(&disk, "copy"), vec![(2 << 20, 65536)]);
    let theirs = dirty(&disk, "theirs");
    assert_eq!(
        theirs,
        vec![(1 << 20, 65536), (2 << 20, 65536), (7 << 20, 131_072)]
    );
    disk.bitmap_merge("copy", theirs.iter().copied()).unwrap();
    assert_eq!(dirty(&disk, "copy"), theirs);
    disk.bitmap_remove("theirs").unwrap();
    let names: Vec<String> = disk
        .info()
        .unwrap()
        .qcow2
        .unwrap()
        .bitmaps
        .into_iter()
        .map(|bitmap| bitmap.name)
        .collect();
    assert_eq!(names, ["ours", "copy"]);
    disk.close().unwrap();
    check(&path);
    let info = qemu_img(&["info", "--output=json", text(&path)]);
    assert!(
        info.contains("\"ours\"") && info.contains("\"copy\"") && !info.contains("\"theirs\""),
        "{info}"
    );
}

#[test]
fn after_a_crash_a_bitmap_in_use_is_not_trusted() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path());
    let disk = open(&path);
    disk.bitmap_add("b", None, true).unwrap();
    disk.write_at(0, &[1; 512]).unwrap();
    disk.flush().unwrap();
    // What is on the medium now is what a crash would leave.
    let copy = dir.path().join("crashed.qcow2");
    std::fs::copy(&path, &copy).unwrap();
    disk.close().unwrap();
    let crashed = open(&copy);
    assert!(crashed.info().unwrap().qcow2.unwrap().bitmaps[0].in_use);
    assert_eq!(
        crashed.bitmap_ranges("b").unwrap_err().kind(),
        ErrorKind::InvalidInput
    );
    crashed.bitmap_remove("b").unwrap();
    crashed.close().unwrap();
    check(&copy);
    assert!(!open(&path).info().unwrap().qcow2.unwrap().bitmaps[0].in_use);
}

#[test]
fn bitmaps_follow_the_size_of_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path());
    let disk = open(&path);
    disk.bitmap_add("b", Some(512), true).unwrap();
    disk.write_at((8 << 20) - 512, &[1; 512]).unwrap();
    disk.resize(64 << 20, Preallocation::Off).unwrap();
    disk.write_at((64 << 20) - 512, &[1; 512]).unwrap();
    assert_eq!(
        dirty(&disk, "b"),
        vec![((8 << 20) - 512, 512), ((64 << 20) - 512, 512)]
    );
    disk.resize(1 << 20, Preallocation::Off).unwrap();
    assert_eq!(dirty(&disk, "b"), vec![]);
    disk.close().unwrap();
    check(&path);
    qemu_io(&path, &["write -P 7 0 64k".into()]);
    assert_eq!(dirty(&open(&path), "b"), vec![(0, 65536)]);
}

#[test]
fn a_bitmap_takes_no_ranges_from_outside_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path());
    let disk = open(&path);
    disk.bitmap_add("b", Some(512), true).unwrap();

    for range in [
        (8 << 20, 512),
        (0, (8 << 20) + 1),
        (1 << 32, 1 << 47),
        (u64::MAX, u64::MAX),
    ] {
        let refused = disk.bitmap_merge("b", [(0, 512), range]).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::OutOfRange, "{refused}");
    }

    assert_eq!(dirty(&disk, "b"), vec![]);
    disk.bitmap_merge("b", [(0, 512), ((8 << 20) - 1, 1), (8 << 20, 0)])
        .unwrap();
    assert_eq!(dirty(&disk, "b"), vec![(0, 512), ((8 << 20) - 512, 512)]);
}
