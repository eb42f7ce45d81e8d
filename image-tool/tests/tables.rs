//! Where tables lie in the file: where a program that looks into images expects them, and what is said when they are
//! damaged.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that cannot be set up has failed"
)]

mod pair;

use std::fs;
use std::os::unix::fs::FileExt;

use pair::{Pair, must, reference_is_there};

const CLUSTER: usize = 65536;

/// The first clusters: header, refcounts, L1 and L2 table.
fn tables(pair: &Pair) -> [Vec<u8>; 2] {
    [pair.ours(), pair.theirs()].map(|folder| {
        let mut bytes = fs::read(folder.join("image")).unwrap();
        bytes.truncate(5 * CLUSTER);
        bytes
    })
}

#[test]
fn a_snapshot_leaves_the_tables_where_they_are() {
    if !reference_is_there() {
        return;
    }
    let write = |at: &str| {
        [
            "qemu-io".to_owned(),
            "-f".to_owned(),
            "qcow2".to_owned(),
            "-c".to_owned(),
            format!("write {at} 100k"),
            "image".to_owned(),
        ]
    };
    for options in [
        "size=64M",
        "size=64M,compat=0.10",
        "size=64M,extended_l2=on",
        "size=64M,refcount_bits=64",
    ] {
        let pair = Pair::new();
        pair.same(&["create", "-q", "-f", "qcow2", "-o", options, "image"]);
        for (name, at) in [("first", "0"), ("second", "64k"), ("third", "1M")] {
            for folder in [pair.ours(), pair.theirs()] {
                must("qemu-io", &folder, &write(at));
            }

            pair.same(&["snapshot", "-c", name, "image"]);

            let [ours, theirs] = tables(&pair);
            assert!(ours == theirs, "{options}: {name}");
            assert_eq!(
                pair.run_ours(&["check", "image"]).status,
                Some(0),
                "{options}: {name}"
            );
        }
        for name in ["first", "third"] {
            pair.same(&["snapshot", "-a", name, "image"]);
            pair.same_image("image", "qcow2");
        }
    }
}

#[test]
fn the_table_of_compressed_clusters_lies_before_them() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    for folder in [pair.ours(), pair.theirs()] {
        fs::write(folder.join("raw"), [7; 3 * CLUSTER]).unwrap();
    }
    pair.same(&["convert", "-f", "raw", "-O", "qcow2", "-c", "raw", "image"]);
    let [ours, theirs] = tables(&pair);
    assert!(ours[3 * CLUSTER..4 * CLUSTER] == theirs[3 * CLUSTER..4 * CLUSTER]);
}

#[test]
fn a_growth_that_is_reserved_is_not_written() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    pair.same(&["create", "-q", "-f", "qcow2", "image", "2000k"]);
    pair.same(&["resize", "-q", "--preallocation=falloc", "image", "+80k"]);
    // Behind header, refcounts, L1 and L2 table: the cluster that the old end cut off, and the new one.
    let map = must(
        "map",
        &pair.ours(),
        &[
            "qemu-img",
            "map",
            "-f",
            "raw",
            "--output=json",
            "-s",
            "327680",
            "image",
        ],
    );
    assert!(
        map.contains("131072") && !map.contains("\"data\": true"),
        "{map}"
    );
    pair.same_image("image", "qcow2");
}

#[test]
fn a_snapshots_damaged_table_is_told_of_alike() {
    if !reference_is_there() {
        return;
    }
    for (field, bytes) in [
        (0, [0u8, 0, 0, 0, 0, 0x40, 2, 0]),
        (8, [0x10, 0, 0, 0, 0, 1, 0, 4]),
    ] {
        let pair = Pair::new();
        let commands: [&[&str]; 3] = [
            &["qemu-img", "create", "-q", "-f", "qcow2", "image", "64M"],
            &["qemu-io", "-f", "qcow2", "-c", "write 0 512", "image"],
            &["qemu-img", "snapshot", "-c", "test", "image"],
        ];
        pair.prepare(&commands);
        for folder in [pair.ours(), pair.theirs()] {
            let image = fs::File::options()
                .write(true)
                .open(folder.join("image"))
                .unwrap();
            image
                .write_all_at(&bytes, 7 * CLUSTER as u64 + field)
                .unwrap();
        }
        for args in [
            &["convert", "-l", "test", "image", "copy"][..],
            &["amend", "-o", "compat=0.10", "image"],
            &["snapshot", "-a", "test", "image"],
            &["snapshot", "-d", "test", "image"],
            &["check", "image"],
        ] {
            pair.same(args);
        }
    }
}

#[test]
fn a_snapshot_of_what_no_refcount_counts_is_refused_alike() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    let commands: [&[&str]; 2] = [
        &["qemu-img", "create", "-q", "-f", "qcow2", "image", "64M"],
        &["qemu-io", "-f", "qcow2", "-c", "write 0 512", "image"],
    ];
    pair.prepare(&commands);
    for entry in [0xbfff_ffff_ffff_0000_u64, 0x8000_00ff_ffff_0000] {
        for folder in [pair.ours(), pair.theirs()] {
            let image = fs::File::options()
                .write(true)
                .open(folder.join("image"))
                .unwrap();
            image
                .write_all_at(&entry.to_be_bytes(), 4 * CLUSTER as u64)
                .unwrap();
        }
        pair.same(&["snapshot", "-c", "test", "image"]);
    }
}

/// Where the bitmaps extension of an image lies.
fn bitmaps_extension(image: &[u8]) -> usize {
    let magic = [0x23, 0x85, 0x28, 0x75];
    image.windows(4).position(|word| word == magic).unwrap()
}

#[test]
fn an_image_whose_bitmap_directory_is_damaged_is_opened_by_nobody() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::prepared(&[
        "qemu-img create -q -f qcow2 sound 1M",
        "qemu-img bitmap --add sound bitmap",
    ]);
    let sound = fs::read(pair.theirs().join("sound")).unwrap();
    let extension = bitmaps_extension(&sound) + 8;
    let offset: [u8; 8] = sound[extension + 16..extension + 24].try_into().unwrap();
    let directory = u64::from_be_bytes(offset) as usize;
    for (what, at, bytes) in [
        ("a flag that is reserved", directory + 15, &[0x06][..]),
        ("another one", directory + 15, &[0x82]),
        ("another type", directory + 16, &[2]),
        ("large granularity", directory + 17, &[32]),
        ("small granularity", directory + 17, &[8]),
        ("a name too long", directory + 18, &[4, 0]),
        ("extra data behind the end", directory + 20, &[0, 0, 0, 8]),
        ("a table out of line", directory + 7, &[1]),
        ("no table", directory + 8, &[0; 4]),
        ("a table for a larger disk", directory + 8, &[0, 0, 0, 5]),
        ("a table for none", directory + 8, &[0x7f, 0, 0, 0]),
        ("no bitmaps", extension, &[0; 4]),
        ("fewer bitmaps", extension, &[0, 0, 0, 2]),
        ("a reserved field", extension + 4, &[0, 0, 0, 1]),
        ("no directory", extension + 8, &[0; 8]),
        ("a short directory", extension + 15, &[8]),
        ("a long directory", extension + 12, &[0x40]),
        ("a directory out of line", extension + 23, &[1]),
        ("an extension cut off", extension - 1, &[23]),
    ] {
        let mut damaged = sound.clone();
        damaged[at..at + bytes.len()].copy_from_slice(bytes);
        for folder in [pair.ours(), pair.theirs()] {
            fs::write(folder.join("image"), &damaged).unwrap();
        }
        for args in [
            &["info", "image"][..],
            &["check", "image"],
            &["check", "-r", "all", "image"],
            &["map", "image"],
            &["compare", "image", "sound"],
            &["convert", "-O", "raw", "image", "copy"],
            &["resize", "-f", "qcow2", "image", "2M"],
            &["bitmap", "--remove", "image", "bitmap"],
            &[
                "bitmap", "--merge", "bitmap", "-b", "image", "sound", "bitmap",
            ],
        ] {
            let outcome = pair.same(args);
            assert_ne!(outcome.status, Some(0), "{what}: {args:?}");
        }
        assert!(
            fs::read(pair.ours().join("image")).unwrap() == damaged,
            "{what}"
        );
    }
}

#[test]
fn a_disk_without_bytes_gets_no_bitmap() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::prepared(&["qemu-img create -q -f qcow2 image 0"]);
    let (ours, theirs) = pair.run_both(&["bitmap", "--add", "image", "bitmap"]);
    assert_eq!((ours.status, theirs.status), (Some(1), Some(1)));
    // QEMU does not open an image that describes a bitmap without a table.
    let info = ["qemu-img", "info", "image"];
    must("info", &pair.ours(), &info);
}
