//! `commit`.

use crate::images::sources;
use crate::pair::{Pair, must, reference_is_there};

#[test]
fn commit_moves_the_same_content() {
    if !reference_is_there() {
        return;
    }
    for args in [
        &["commit", "mid"][..],
        &["commit", "top"],
        &["commit", "-d", "top"],
        &["commit", "-q", "-p", "-t", "unsafe", "top"],
        &["commit", "-b", "base", "top"],
        &["commit", "-b", "mid", "top"],
        &["commit", "base"],
        &["commit", "-b", "nope", "top"],
        &["commit", "-t", "foo", "top"],
        &["commit", "-r", "x", "top"],
    ] {
        let pair = Pair::new();
        sources(&pair);
        pair.prepare(&[&["qemu-img", "snapshot", "-d", "first", "top"]]);
        pair.same(args);
        for image in ["base", "mid", "top"] {
            pair.same_image(image, "qcow2");
        }
        let map = |side: &std::path::Path| {
            must("map", side, &["qemu-img", "map", "--output=json", "top"])
                .matches("\"depth\": 0")
                .count()
        };
        assert_eq!(
            map(&pair.ours()) == 0,
            map(&pair.theirs()) == 0,
            "{args:?}: what remains in the overlay"
        );
    }
}

#[test]
fn that_the_format_of_a_raw_image_was_guessed_is_said() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::prepared(&["qemu-img create -q -f raw image 1M"]);
    for line in [
        "commit image",
        "commit -q image",
        "commit -b other image",
        "commit -f raw image",
    ] {
        pair.same(&line.split(' ').collect::<Vec<_>>());
    }
}

#[test]
fn the_overlay_is_as_short_and_takes_as_little_as_after_qemu_img() {
    if !reference_is_there() {
        return;
    }
    for (options, size, write) in [
        ("compat=1.1", "16M", "write -P 3 0 1M"),
        ("refcount_bits=16", "16M", "write -P 3 0 1M"),
        ("extended_l2=on", "16M", "write -P 3 0 1M"),
        ("refcount_bits=1", "16M", "write -P 3 0 1M"),
        // These have larger tables in the end than in the beginning, at the end of the file.
        ("cluster_size=512", "4M", "write -P 3 0 3M"),
        ("cluster_size=4k", "256k", "write -P 3 0 256k"),
    ] {
        let pair = Pair::new();
        let grows = options.starts_with("cluster") || options == "refcount_bits=16";
        let resize = match options == "refcount_bits=16" {
            true => "qemu-img resize -q top 2G",
            false => "true",
        };
        let create =
            format!("qemu-img create -q -f qcow2 -o {options} -b base -F qcow2 top {size}");
        pair.make(&[
            "qemu-img create -q -f qcow2 base 64M",
            &create,
            resize,
            &format!("qemu-io -f qcow2 -c '{write}' top"),
        ]);
        pair.same(&["commit", "top"]);
        pair.same_image("top", "qcow2");
        pair.same_image("base", "qcow2");
        use std::os::unix::fs::MetadataExt;
        let length = |side: std::path::PathBuf| std::fs::metadata(side.join("top")).unwrap();
        let (ours, theirs) = (length(pair.ours()), length(pair.theirs()));
        // Tables that were moved to the front leave behind where they were written beside the old ones.
        let bound = if grows { 2 } else { 1 };
        assert!(
            ours.len() <= bound * theirs.len() && ours.blocks() <= bound * theirs.blocks(),
            "{options} {size}: {} and {} blocks, not {} and {}",
            ours.len(),
            ours.blocks(),
            theirs.len(),
            theirs.blocks()
        );
    }
}

#[test]
fn an_overlay_with_a_snapshot_keeps_it_and_gives_back_the_rest() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    pair.make(&[
        "qemu-img create -q -f qcow2 base 16M",
        "qemu-img create -q -f qcow2 -b base -F qcow2 top 16M",
        "qemu-io -f qcow2 -c 'write -P 3 0 1M' top",
        "qemu-img snapshot -c kept top",
        "qemu-io -f qcow2 -c 'write -P 4 0 8M' top",
    ]);
    pair.same(&["commit", "top"]);
    pair.same_image("top", "qcow2");
    let length = std::fs::metadata(pair.ours().join("top")).unwrap().len();
    assert!(length < 4 << 20, "{length}");
    for side in [pair.ours(), pair.theirs()] {
        must(
            "apply",
            &side,
            &["qemu-img", "snapshot", "-a", "kept", "top"],
        );
    }
    pair.same_image("top", "qcow2");
}
