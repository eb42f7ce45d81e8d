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
