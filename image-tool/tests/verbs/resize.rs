//! `resize`.

use crate::images::sources;
use crate::pair::{Pair, reference_is_there};

#[test]
fn resize_changes_the_same() {
    if !reference_is_there() {
        return;
    }
    let images = [
        ("a.raw", "raw"),
        ("base", "qcow2"),
        ("mid", "qcow2"),
        ("extended", "qcow2"),
        ("small", "qcow2"),
    ];
    for (image, format) in images {
        let pair = Pair::new();
        sources(&pair);
        for args in [
            &["+1M"][..],
            &["--preallocation=metadata", "+2M"],
            &["-1M"],
            &["--shrink", "-1M"],
            &["-q", "20M"],
            &["--shrink", "5M"],
            &["--preallocation=full", "5M"],
            &["--prealloc=full", "6M"],
            &["--preallocation=falloc", "7M"],
            &["--shrink", "1000448"],
            &["+1"],
            &["-100M"],
            &["x"],
            &["1E"],
        ] {
            if format == "raw" && args.contains(&"1E") {
                continue;
            }
            let (size, options) = args.split_last().unwrap();
            let args: Vec<_> = ["resize", "-f", format]
                .iter()
                .chain(options)
                .copied()
                .chain([image, size])
                .collect();
            pair.same(&args);
            pair.same_image(image, format);
        }
    }
    let pair = Pair::new();
    sources(&pair);
    pair.same(&["resize", "a.raw", "20M"]);
    pair.same(&["resize", "a", "b", "c"]);
    pair.same(&["resize", "--preallocation=foo", "base", "20M"]);
}

#[test]
fn what_is_new_over_a_longer_backing_file_is_marked_as_zeroes() {
    if !reference_is_there() {
        return;
    }
    for (options, mode) in [
        ("cluster_size=4k", "off"),
        ("extended_l2=on,cluster_size=16k", "off"),
        ("cluster_size=64k", "metadata"),
    ] {
        let overlay = format!("qemu-img create -q -f qcow2 -o {options} -b base -F qcow2 image 1M");
        let pair = Pair::prepared(&["qemu-img create -q -f qcow2 base 3M", &overlay]);
        let preallocation = format!("--preallocation={mode}");
        pair.same(&["resize", "-f", "qcow2", &preallocation, "image", "40M"]);
        pair.same(&["map", "--output=json", "image"]);
        pair.same_image("image", "qcow2");
    }
}
