//! `snapshot`.

use crate::images::sources;
use crate::pair::{Pair, reference_is_there};

#[test]
fn snapshots_are_made_applied_and_deleted_alike() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    sources(&pair);
    let steps: &[&[&str]] = &[
        &["snapshot", "-c", "second", "top"],
        &["snapshot", "top"],
        &["snapshot", "-a", "first", "top"],
        &["snapshot", "-d", "second", "top"],
        &["snapshot", "-c", "third", "top"],
        &["snapshot", "-q", "-a", "1", "top"],
        &["snapshot", "-d", "nope", "top"],
        &["snapshot", "-a", "nope", "top"],
        &["snapshot", "-d", "first", "top"],
        &["snapshot", "-d", "third", "top"],
        &["snapshot", "-c", "v2", "v2"],
        &["snapshot", "-a", "v2", "v2"],
        &["snapshot", "-c", "a", "extended"],
        &["snapshot", "-d", "a", "extended"],
    ];
    for step in steps {
        let (ours, theirs) = pair.run_both(step);
        let undated = |text: &str| {
            text.lines()
                .filter(|line| !line.contains(":"))
                .collect::<Vec<_>>()
                .join("\n")
        };
        assert_eq!(ours.status, theirs.status, "{step:?}: {ours:?} {theirs:?}");
        assert_eq!(ours.stderr, theirs.stderr, "{step:?}");
        assert_eq!(undated(&ours.stdout), undated(&theirs.stdout), "{step:?}");
        for image in ["top", "v2", "extended"] {
            pair.same_image(image, "qcow2");
        }
    }
    pair.same_reading(&["snapshot", "-l", "top"]);
    pair.same_reading(&["snapshot", "-U", "--list", "v2"]);
    for line in [
        "snapshot",
        "snapshot -c a -d b base",
        "snapshot -U -c x base",
        "snapshot -l -f raw a.raw",
        "snapshot -f raw -c x a.raw",
        "snapshot -f raw -a x a.raw",
        "snapshot -f raw -d x a.raw",
    ] {
        pair.same(&line.split(' ').collect::<Vec<_>>());
    }
}

#[test]
fn a_snapshot_is_deleted_by_its_name_and_not_by_its_id() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::prepared(&[
        "qemu-img create -q -f qcow2 a 1M",
        "qemu-img snapshot -c kept a",
    ]);

    assert_eq!(pair.same(&["snapshot", "-d", "1", "a"]).status, Some(1));
    assert_eq!(pair.same(&["snapshot", "-d", "kept", "a"]).status, Some(0));
}

#[test]
fn an_image_with_a_data_file_has_no_snapshots() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::prepared(&["qemu-img create -q -f qcow2 -o data_file=data a 1M"]);

    for option in ["-c", "-a", "-d"] {
        let outcome = pair.same(&["snapshot", option, "name", "a"]);
        assert_eq!(outcome.status, Some(1), "{option}");
    }
}

#[test]
fn a_snapshot_is_not_applied_under_bitmaps() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::prepared(&[
        "qemu-img create -q -f qcow2 a 1M",
        "qemu-img snapshot -c kept a",
        "qemu-img bitmap --add a b0",
    ]);

    assert_eq!(pair.same(&["snapshot", "-a", "kept", "a"]).status, Some(1));
}
