//! `bitmap`, and bitmaps that `convert` copies.

use std::fs;

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
