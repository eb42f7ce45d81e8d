//! `dd`.

use std::fs;

use crate::images::sources;
use crate::pair::{Pair, reference_is_there};

#[test]
fn dd_copies_the_same_range() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    sources(&pair);
    for line in [
        "dd if=base of=x",
        "dd -f raw if=tiny of=x",
        "dd bs=1M count=3 skip=1 if=top of=x",
        "dd bs=100 count=33 if=base of=x",
        "dd bs=64k skip=1000 if=base of=x",
        "dd -U -f qcow2 -O raw if=compressed of=x",
    ] {
        pair.same(&line.split(' ').collect::<Vec<_>>());
        assert!(
            fs::read(pair.ours().join("x")).unwrap() == fs::read(pair.theirs().join("x")).unwrap(),
            "{line}"
        );
    }
    for line in [
        "dd -O qcow2 if=top of=x",
        "dd -O qcow2 bs=1M count=3 skip=1 if=base of=x",
    ] {
        pair.same(&line.split(' ').collect::<Vec<_>>());
        pair.same_image("x", "qcow2");
    }
    for line in [
        "dd",
        "dd if=base",
        "dd foo",
        "dd foo=1",
        "dd bs=0 if=base of=y",
        "dd bs=x if=base of=y",
        "dd count=x if=base of=y",
        "dd skip=x if=base of=y",
        "dd -O foo if=base of=y",
        "dd if=nope of=y",
        "dd if=base of=/nope/y",
        "dd if=base of=base",
    ] {
        pair.same(&line.split(' ').collect::<Vec<_>>());
    }
}
