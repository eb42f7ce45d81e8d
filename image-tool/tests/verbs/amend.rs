//! `amend`.

use crate::images::{ALL, sources};
use crate::pair::{Pair, must, reference_is_there};

#[test]
fn amend_changes_the_same() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    sources(&pair);
    pair.prepare(&[
        &["qemu-img", "snapshot", "-d", "first", "top"],
        &["qemu-img", "snapshot", "-c", "kept", "small"],
    ]);
    for line in [
        "amend -o compat=v2 base",
        "amend -o compat=1.1,lazy_refcounts=on base",
        "amend -q -p -o lazy_refcounts=off base",
        "amend -o compat=0.10 top",
        "amend -o compat=v3 top",
        "amend -o refcount_bits=1 base",
        "amend -o refcount_bits=64 base",
        "amend -o refcount_bits=16,compat=v2 base",
        "amend -o size=9M base",
        "amend -o refcount_bits=32 small",
        "amend -o refcount_bits=1 small",
        "amend -o compat=v3 v2",
        "amend -o refcount_bits=8 extended",
        "amend -o backing_file=mid,backing_fmt=qcow2 top",
        "amend",
        "amend base",
        "amend -o foo=1 base",
        "amend -o cluster_size=1k base",
        "amend -o preallocation=full base",
        "amend -o compat=foo base",
        "amend -o refcount_bits=3 base",
        "amend -o refcount_bits=8,compat=v2 mid",
        "amend -o lazy_refcounts=on,compat=v2 mid",
        "amend -o compat=0.10 extended",
        "amend -o compat=0.10 external",
        "amend -o backing_file=x top",
        "amend -o data_file=foo base",
        "amend -o data_file_raw=on base",
        "amend -o data_file=data external",
        "amend -o , base",
        "amend -t foo -o size=1M base",
        "amend -o size=1 a b",
        "amend -o help -f qcow2",
        "amend -o help base",
        "amend -o help -f raw",
        "amend -o size=1 -f raw a.raw",
        "amend -o help a.raw",
    ] {
        let args: Vec<_> = line.split(' ').collect();
        pair.same(&args);
        let changed = args
            .last()
            .filter(|image| ALL.contains(image) && !image.ends_with("raw"));
        if let Some(image) = changed {
            pair.same_image(image, "qcow2");
        }
    }
}

#[test]
fn what_asks_for_no_change_changes_nothing() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    pair.make(&[
        "qemu-img create -q -f qcow2 below 2M",
        "qemu-img create -q -f qcow2 -b below -F qcow2 over 1M",
        "qemu-img create -q -f qcow2 -o lazy_refcounts=on lazy 1M",
        "qemu-io -c 'write 0 128k' over",
        "qemu-io -c 'write 0 128k' lazy",
    ]);
    for line in [
        // No way to lose a disk.
        "amend -o size=0 over",
        "amend -o size=0,compat=0.10 over",
        // One of the two without the other asks for the other to go.
        "amend -o backing_file=below over",
        "amend -o backing_fmt=qcow2 over",
        "amend -o backing_file=below,backing_fmt=raw over",
        "amend -o backing_file=below,backing_fmt=qcow2 over",
        "amend -o lazy_refcounts=on,compat=0.10 over",
        "amend -o lazy_refcounts=on,compat=0.10 lazy",
    ] {
        pair.same(&line.split(' ').collect::<Vec<_>>());
        pair.same_image("over", "qcow2");
        pair.same_image("lazy", "qcow2");
    }
}

#[test]
fn a_line_of_progress_ends_however_far_it_came() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::prepared(&[
        "qemu-img create -q -f qcow2 image 1M",
        "qemu-img create -q -f raw raw 1M",
    ]);
    for line in [
        "amend -p -o compat=1.1 nothing",
        "amend -p -f raw -o compat=1.1 raw",
        "amend -p -f other -o compat=1.1 image",
        "amend -p -o other=1 image",
        "amend -p -o help image",
        "amend -p -q -o compat=1.1 nothing",
        "amend -p image",
        "commit -p image",
        "commit -p -b other image",
        "commit -p nothing",
        "commit -p -q image",
    ] {
        pair.same(&line.split(' ').collect::<Vec<_>>());
    }
}

#[test]
fn what_a_version_without_zero_clusters_has_room_for_is_what_was_reserved() {
    if !reference_is_there() {
        return;
    }
    for reserved in ["off", "metadata", "falloc"] {
        // Not one copied to the other: a copy has holes elsewhere.
        let pair = Pair::new();
        let options = format!("preallocation={reserved}");
        let create = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", &options];
        for folder in [pair.ours(), pair.theirs()] {
            must(
                "create",
                &folder,
                &[&create[..], &["image", "4000k"]].concat(),
            );
            for what in [
                "write -P 5 1M 256k",
                "write -z 0 128k",
                "write -z 1M 128k",
                "write -zu 1152k 64k",
                "write -z 3968k 32k",
            ] {
                must("write", &folder, &["qemu-io", "-c", what, "image"]);
            }
        }
        pair.same(&["amend", "-o", "compat=0.10", "image"]);
        pair.same(&["map", "--output=json", "image"]);
        pair.same(&["check", "--output=json", "image"]);
        pair.same_image("image", "qcow2");
    }
}

#[test]
fn version_2_forgets_a_compression_that_nothing_uses() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    pair.make(&[
        "qemu-img create -q -f qcow2 -o compression_type=zstd plain 1M",
        "qemu-io -c 'write 0 128k' plain",
        "cp plain packed",
        "qemu-io -c 'write -c 256k 64k' packed",
        "cp packed kept",
        "qemu-img snapshot -c then kept",
        "qemu-io -c 'write 256k 64k' kept",
    ]);

    assert_eq!(
        pair.same(&["amend", "-o", "compat=0.10", "plain"]).status,
        Some(0)
    );
    assert_eq!(
        pair.same(&["amend", "-o", "compat=0.10", "packed"]).status,
        Some(1)
    );
    for image in ["plain", "packed"] {
        pair.same_image(image, "qcow2");
    }
    // The reference does not look at what snapshots keep, and loses it.
    let outcome = pair.run_ours(&["amend", "-o", "compat=0.10", "kept"]);
    assert_eq!(outcome.status, Some(1), "{outcome:?}");
}
