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
