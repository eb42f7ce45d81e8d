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
