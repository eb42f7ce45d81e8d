//! `bitmap`, and bitmaps that `convert` copies.

use std::fs;
use std::path::Path;

use crate::images::sources;
use crate::pair::{Pair, must, reference_is_there};

#[test]
fn bitmaps_are_changed_and_copied_alike() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    sources(&pair);
    for line in [
        "bitmap --add base b0",
        "bitmap --add -g 32k base b1",
        "bitmap --add --disable base b2",
        "bitmap --add base b0",
        "bitmap --add -g 3 base b3",
        "bitmap --add -g 100 base b3",
        "bitmap --add -g 4G base b3",
        "bitmap --remove base nope",
        "bitmap --clear base nope",
        "bitmap --enable base nope",
        "bitmap --disable base nope",
        "bitmap --merge nope base b0",
        "bitmap --merge b0 base nope",
        "bitmap -g 3 --clear base b0",
        "bitmap -F raw --clear base b0",
        "bitmap -b x --clear base b0",
        "bitmap",
        "bitmap --add",
        "bitmap --add base",
        "bitmap --enable base b2",
    ] {
        pair.same(&line.split(' ').collect::<Vec<_>>());
        pair.same_image("base", "qcow2");
    }
    // Writes are recorded, by whichever tool; then merged, cleared, removed, copied.
    for side in [pair.ours(), pair.theirs()] {
        must(
            "write",
            &side,
            &[
                "qemu-io",
                "-f",
                "qcow2",
                "-c",
                "write -P 1 1M 100k",
                "-c",
                "write 7M 1k",
                "base",
            ],
        );
    }
    pair.same(&[
        "bench",
        "-w",
        "-c",
        "1",
        "-o",
        "3M",
        "--pattern",
        "5",
        "-f",
        "qcow2",
        "-t",
        "foo",
        "base",
    ]);
    for line in [
        "bitmap --merge b0 base b1",
        "bitmap --add --disable --merge b1 base b4",
        "bitmap --clear base b0",
        "bitmap --remove base b2",
        "convert --bitmaps -O qcow2 base copy",
        "convert --bitmaps -c -O qcow2 -o compression_type=zstd base copy2",
        "bitmap --add copy other",
        "bitmap --merge b1 -b base -F qcow2 copy other",
    ] {
        pair.same(&line.split(' ').collect::<Vec<_>>());
        pair.same_image("base", "qcow2");
        for side in [pair.ours(), pair.theirs()] {
            // Each tool reads the sizes of the other's bitmaps alike.
            must(
                "measure",
                &side,
                &["qemu-img", "measure", "-O", "qcow2", "base"],
            );
        }
    }
    for image in ["copy", "copy2"] {
        pair.same_image(image, "qcow2");
    }
    // The bits themselves: both merged bitmaps, seen by the reference.
    let dirty = |side: &std::path::Path, bitmap: &str| {
        let server = format!("driver=qcow2,file.filename={}", side.join("base").display());
        bits(side, &server, bitmap)
    };
    for bitmap in ["b0", "b1", "b4"] {
        assert_eq!(
            dirty(&pair.ours(), bitmap),
            dirty(&pair.theirs(), bitmap),
            "{bitmap}"
        );
    }
}

/// The dirty ranges of a bitmap as the reference's NBD server shows them.
fn bits(folder: &std::path::Path, image: &str, bitmap: &str) -> String {
    let socket = folder.join("nbd.sock");
    let _ = fs::remove_file(&socket);
    let mut server = std::process::Command::new("qemu-nbd")
        .args([
            "--image-opts",
            "-r",
            "-k",
            &socket.to_string_lossy(),
            "-B",
            bitmap,
            image,
        ])
        .spawn()
        .unwrap();
    while !socket.exists() {
        assert!(server.try_wait().unwrap().is_none(), "qemu-nbd ended early");
        std::thread::yield_now();
    }
    let export = format!(
        "driver=nbd,server.type=unix,server.path={},x-dirty-bitmap=qemu:dirty-bitmap:{bitmap}",
        socket.display()
    );
    let map = must(
        "map",
        folder,
        &["qemu-img", "map", "--output=json", "--image-opts", &export],
    );
    server.wait().unwrap();
    map
}

#[test]
fn bitmaps_of_disks_of_different_sizes_are_not_merged() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::prepared(&[
        "qemu-img create -q -f qcow2 a 1M",
        "qemu-img create -q -f qcow2 b 2M",
        "qemu-img bitmap --add a b0",
        "qemu-img bitmap --add b b0",
    ]);

    let merged = pair.same(&[
        "bitmap", "--merge", "b0", "-b", "b", "-F", "qcow2", "a", "b0",
    ]);
    assert_eq!(merged.status, Some(1));
    let copied = pair.same(&["convert", "-n", "-O", "qcow2", "--bitmaps", "a", "b"]);
    assert_eq!(copied.status, Some(1));
    // An empty bitmap would say that nothing has changed.
    pair.make(&["qemu-img create -q -f qcow2 c 2M"]);
    let copied = pair.same(&["convert", "-n", "-O", "qcow2", "--bitmaps", "a", "c"]);
    assert_eq!(copied.status, Some(1));
    let left = pair.run_ours(&["info", "c"]);
    assert!(!left.stdout.contains("bitmaps"), "{left:?}");
}

#[test]
fn version_2_has_no_bitmaps_to_copy() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::prepared(&[
        "qemu-img create -q -f qcow2 -o compat=0.10 a 1M",
        "qemu-img snapshot -c then a",
    ]);

    for line in [
        "convert --bitmaps -O qcow2 a b",
        "convert --bitmaps -l then -O qcow2 a b",
    ] {
        let outcome = pair.same(&line.split(' ').collect::<Vec<_>>());
        assert_eq!(outcome.status, Some(1), "{line}");
    }
}

/// A disk of 8 GiB in a small file, every other sector of which is dirty: all entries of its bitmap's table lead to one
/// cluster.
fn with_many_ranges(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let word = |bytes: &[u8], at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
    let extension = bytes
        .windows(4)
        .position(|word| word == [0x23, 0x85, 0x28, 0x75]);
    let directory = word(&bytes, extension.unwrap() + 24) as usize;
    let table = word(&bytes, directory) as usize;
    let first: [u8; 8] = bytes[table..table + 8].try_into().unwrap();
    let cluster = u64::from_be_bytes(first) as usize;
    assert_ne!(cluster, 0, "the first sector is dirty");
    bytes[cluster..cluster + 65536].fill(0xaa);
    for entry in bytes[table..table + 8 * 32].chunks_mut(8) {
        entry.copy_from_slice(&first);
    }
    fs::write(path, bytes).unwrap();
}

#[test]
fn ranges_of_a_bitmap_are_not_all_in_memory() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    pair.make(&[
        "qemu-img create -q -f qcow2 many 8G",
        "qemu-img bitmap --add -g 512 many b",
        "qemu-io -f qcow2 -c 'write 0 512' many",
        "qemu-img create -q -f qcow2 other 8G",
        "qemu-img bitmap --add -g 64k other b",
    ]);
    with_many_ranges(&pair.ours().join("many"));
    // Its bits are 2 MiB, and its ranges would be 128 MiB.
    let merge = format!(
        "ulimit -v 100000; exec {} bitmap --merge b -b many -F qcow2 -f qcow2 other b",
        env!("CARGO_BIN_EXE_image-tool")
    );
    must("merge", &pair.ours(), &["sh", "-c", &merge]);
    let checked = must("check", &pair.ours(), &["qemu-img", "check", "other"]);
    assert!(checked.starts_with("No errors"), "{checked}");
}
