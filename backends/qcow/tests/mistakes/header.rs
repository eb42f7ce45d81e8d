//! What a header says: refused beyond the limits, kept where it is not understood, left as the user set it.

use std::path::Path;

use qcow::{CreateOptions, ErrorKind, Format, Image, Preallocation, Repair};

use crate::peer::check;
use crate::{MIB, be64, created, patch, plain, read_only, refused, writable};

// CVE-2014-0143 to -0147, and their relatives.
#[test]
fn sizes_and_places_in_the_header_beyond_the_limits_are_refused() {
    let cases: &[(u64, &[u8], &str)] = &[
        (20, &8u32.to_be_bytes(), "cluster size"),
        (20, &22u32.to_be_bytes(), "cluster size"),
        (24, &u64::MAX.to_be_bytes(), "Image is too big"),
        (36, &u32::MAX.to_be_bytes(), "L1 table too large"),
        (36, &0u32.to_be_bytes(), "L1 table is too small"),
        (
            40,
            &12345u64.to_be_bytes(),
            "Active L1 table offset invalid",
        ),
        (
            40,
            &(1u64 << 60).to_be_bytes(),
            "Active L1 table offset invalid",
        ),
        (
            48,
            &7u64.to_be_bytes(),
            "Reference count table offset invalid",
        ),
        (
            48,
            &(u64::MAX << 16).to_be_bytes(),
            "Reference count table offset invalid",
        ),
        (
            56,
            &u32::MAX.to_be_bytes(),
            "Reference count table too large",
        ),
        (56, &0u32.to_be_bytes(), "reference count table"),
        (60, &65537u32.to_be_bytes(), "Snapshot table too large"),
        (96, &7u32.to_be_bytes(), "entry width"),
        (100, &72u32.to_be_bytes(), "header too short"),
        (100, &(1u32 << 30).to_be_bytes(), "header exceeds"),
        (
            8,
            &[0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 4, 0],
            "Backing file name too long",
        ),
        (
            8,
            &[0, 0, 0, 0, 0, 0, 255, 255, 0, 0, 2, 0],
            "backing file offset",
        ),
        (116, &u32::MAX.to_be_bytes(), "extension"),
        (112, &[0, 0, 0, 0, 0, 2, 0, 0], "extension"),
        (4, &4u32.to_be_bytes(), "version"),
    ];
    for (offset, bytes, says) in cases {
        let dir = tempfile::tempdir().unwrap();
        let path = plain(dir.path());
        patch(&path, *offset, bytes);
        let error = Image::open(&path, &read_only()).map(|_| ()).unwrap_err();
        assert!(
            error.to_string().contains(says),
            "field at {offset}: {error} does not say {says}"
        );
    }
}

#[test]
fn unknown_incompatible_bits_are_refused_by_the_name_the_image_gives_them() {
    let dir = tempfile::tempdir().unwrap();
    let path = plain(dir.path());
    patch(&path, 72, &(1u64 << 40).to_be_bytes());
    refused(
        &path,
        &read_only(),
        ErrorKind::Unsupported,
        "Unknown incompatible feature: 10000000000",
    );
    // The first entry of the feature name table becomes one for that bit.
    patch(&path, 120, b"\0\x28time travel\0");
    refused(&path, &read_only(), ErrorKind::Unsupported, "time travel");
}

#[test]
fn unknown_autoclear_bits_are_cleared_by_a_writer_and_kept_by_a_reader() {
    let dir = tempfile::tempdir().unwrap();
    let path = plain(dir.path());
    patch(&path, 88, &(1u64 << 40).to_be_bytes());
    drop(Image::open(&path, &read_only()).unwrap());
    assert_eq!(be64(&path, 88), 1 << 40);
    drop(Image::open(&path, &writable()).unwrap());
    assert_eq!(be64(&path, 88), 0);
}

#[test]
fn unknown_header_extensions_survive_changes_of_the_header() {
    let dir = tempfile::tempdir().unwrap();
    let path = plain(dir.path());
    // An unknown extension in front of the list end.
    let mut extension = Vec::new();
    extension.extend_from_slice(&0x1234_5678u32.to_be_bytes());
    extension.extend_from_slice(&6u32.to_be_bytes());
    extension.extend_from_slice(b"keep!!\0\0\0\0\0\0\0\0\0\0");
    patch(&path, 112, &extension);
    let image = Image::open(&path, &writable()).unwrap();
    image.bitmap_add("b", None, false).unwrap();
    image.snapshot_create("s").unwrap();
    image.resize(128 * MIB, Preallocation::Off).unwrap();
    image.close().unwrap();
    let header = std::fs::read(&path).unwrap()[..512].to_vec();
    assert!(
        header.windows(14).any(|window| window == &extension[..14]),
        "the extension is gone"
    );
    check(&path);
}

#[test]
fn an_encrypted_image_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    for method in 1u32..=2 {
        let path = plain(dir.path());
        patch(&path, 32, &method.to_be_bytes());
        refused(&path, &read_only(), ErrorKind::Unsupported, "encrypted");
    }
}

#[test]
fn lazy_refcounts_stay_as_the_user_set_them() {
    let dir = tempfile::tempdir().unwrap();
    let path = created(
        dir.path(),
        &CreateOptions {
            lazy_refcounts: true,
            ..CreateOptions::new(Format::Qcow2, MIB)
        },
    );
    let info = |path: &Path| {
        Image::open(path, &read_only())
            .unwrap()
            .info()
            .unwrap()
            .qcow2
            .unwrap()
    };
    let image = Image::open(&path, &writable()).unwrap();
    image.write_at(0, &[1; 4096]).unwrap();
    image.flush().unwrap();
    let crashed = dir.path().join("crashed.qcow2");
    std::fs::copy(&path, &crashed).unwrap();
    image.close().unwrap();
    assert!(info(&path).lazy_refcounts && !info(&path).dirty);
    // After a crash the refcounts are behind, and the image says so; a writer counts anew and leaves the option alone.
    assert!(info(&crashed).dirty);
    assert!(
        Image::open(&crashed, &read_only())
            .unwrap()
            .check(Repair::None)
            .unwrap()
            .corruptions
            > 0
    );
    Image::open(&crashed, &writable()).unwrap().close().unwrap();
    assert!(info(&crashed).lazy_refcounts && !info(&crashed).dirty);
    check(&crashed);
}

#[test]
fn a_read_only_open_never_changes_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = plain(dir.path());
    Image::open(&path, &writable())
        .unwrap()
        .write_at(0, &[1; 4096])
        .unwrap();
    // Dirty, with unknown autoclear bits and a wrong refcount: much that a writer would put right.
    patch(&path, 72, &1u64.to_be_bytes());
    patch(&path, 88, &(1u64 << 30).to_be_bytes());
    patch(&path, 2 * 65536 + 10, &[0, 9]);
    let before = std::fs::read(&path).unwrap();
    let image = Image::open(&path, &read_only()).unwrap();
    image.read_at(0, &mut [0; 65536]).unwrap();
    assert!(image.check(Repair::None).unwrap().leaks > 0);
    assert_eq!(
        image.check(Repair::All).unwrap_err().kind(),
        ErrorKind::ReadOnly
    );
    assert_eq!(
        image.write_at(0, &[1]).unwrap_err().kind(),
        ErrorKind::ReadOnly
    );
    image.close().unwrap();
    assert!(before == std::fs::read(&path).unwrap());
}
