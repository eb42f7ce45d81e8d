//! `rebase`.

use crate::images::sources;
use crate::pair::{Pair, must, reference_is_there};

#[test]
fn rebase_keeps_the_content() {
    if !reference_is_there() {
        return;
    }
    for args in [
        &["rebase", "-b", "", "top"][..],
        &["rebase", "-b", "base", "-F", "qcow2", "top"],
        &["rebase", "-b", "a.raw", "-F", "raw", "top"],
        &[
            "rebase", "-p", "-q", "-c", "-b", "a.raw", "-F", "raw", "top",
        ],
        &["rebase", "-b", "v2", "-F", "qcow2", "mid"],
        &["rebase", "-b", "mid", "-F", "qcow2", "compressed"],
        &["rebase", "-b", "a.raw", "-F", "raw", "extended"],
        &["rebase", "-b", "tiny", "-F", "raw", "top"],
    ] {
        let pair = Pair::new();
        sources(&pair);
        let image = args.last().unwrap();
        must(
            "before",
            &pair.ours(),
            &["qemu-img", "convert", "-O", "raw", image, "before.raw"],
        );
        pair.same(args);
        pair.same_image(image, "qcow2");
        must(
            "after",
            &pair.ours(),
            &["qemu-img", "compare", "-F", "raw", image, "before.raw"],
        );
    }
    let pair = Pair::new();
    sources(&pair);
    for line in [
        "rebase",
        "rebase top",
        "rebase -b nope -F qcow2 top",
        "rebase -b base top",
        "rebase -u -b foo -F foo top",
        "rebase -u -b foo top",
        "rebase -u -b foo -F qcow2 top",
        "rebase -u -b mid -F qcow2 top",
        "rebase -u top",
        "rebase -t foo -b x top",
        "rebase -T foo -b x top",
        "rebase -c -b base -F qcow2 -f raw a.raw",
        "rebase -u -b base -F qcow2 -f raw a.raw",
    ] {
        pair.same(&line.split(' ').collect::<Vec<_>>());
    }
}

#[test]
fn a_raw_data_file_gets_no_backing_file() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::prepared(&[
        "qemu-img create -q -f qcow2 base 1M",
        "qemu-img create -q -f qcow2 -o data_file=data,data_file_raw=on image 1M",
    ]);
    pair.same(&["rebase", "-u", "-b", "base", "-F", "qcow2", "image"]);
    pair.same(&["check", "-q", "image"]);
}
