//! `measure`.

use crate::images::{ALL, sources};
use crate::pair::{Pair, reference_is_there};

#[test]
fn measure_gives_the_same_sizes() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    sources(&pair);
    for image in ALL {
        for target in [
            &["-O", "raw"][..],
            &["-O", "qcow2"],
            &["-O", "qcow2", "--output=json"],
            &["-O", "qcow2", "-o", "cluster_size=4k,refcount_bits=64"],
            &["-O", "qcow2", "-o", "extended_l2=on"],
            &["-O", "qcow2", "-o", "preallocation=falloc"],
            &["-O", "qcow2", "-o", "backing_file=x,backing_fmt=raw"],
        ] {
            let args: Vec<_> = ["measure"]
                .iter()
                .chain(target)
                .copied()
                .chain([image])
                .collect();
            pair.same_reading(&args);
        }
    }
    for size in ["0", "1", "1k", "1.5G", "64T", "1E", "7E", "x"] {
        for format in ["raw", "qcow2"] {
            pair.same_reading(&["measure", "-O", format, "--size", size]);
        }
    }
    for line in [
        "measure",
        "measure a b",
        "measure --size 1G a",
        "measure -l x --size 1G",
        "measure -O foo base",
        "measure -O qcow2 -o foo=1 base",
        "measure -O qcow2 -o cluster_size=3 base",
        "measure -O qcow2 -o preallocation=foo base",
        "measure -O qcow2 -l first top",
        "measure -O qcow2 -l nope top",
        "measure -O qcow2 -o size=1G",
        "measure -O qcow2 --size 1G -o cluster_size=512,refcount_bits=64",
    ] {
        pair.same_reading(&line.split(' ').collect::<Vec<_>>());
    }
}
