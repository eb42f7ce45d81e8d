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
        "measure -O qcow2 --size 1G -o compat=0.10,refcount_bits=1",
        "measure -O qcow2 --size 1G -o compat=0.9",
        "measure -O qcow2 --size 1G -o compat=v3",
        "measure -O qcow2 --size 1G -o extended_l2=on,cluster_size=4k",
        // What does not change the answer may be anything.
        "measure -O qcow2 --size 1G -o compat=0.10,lazy_refcounts=on",
        "measure -O qcow2 --size 1G -o compat=0.10,extended_l2=on",
        "measure -O qcow2 --size 1G -o compat=0.10,compression_type=zstd",
        "measure -O qcow2 --size 1G -o compat=0.10,data_file=x",
        "measure -O qcow2 --size 1G -o data_file_raw=on",
        "measure -O qcow2 --size 1G -o compression_type=other",
        "measure -O qcow2 --size 1G -o backing_fmt=other",
        "measure -O qcow2 -o preallocation=metadata,backing_file=x base",
    ] {
        pair.same_reading(&line.split(' ').collect::<Vec<_>>());
    }
}
