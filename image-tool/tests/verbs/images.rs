//! The images that the verbs work on: of many kinds.

use crate::pair::Pair;
use crate::pair::images::{BASE, RAW};

/// Two layers over the base, the topmost with a snapshot.
const LAYERS: &str = "
    qemu-io -f qcow2 -c 'write -P 0 3M 128k' base
    qemu-img create -q -f qcow2 -b base -F qcow2 mid 10M
    qemu-io -f qcow2 -c 'write -P 8 3M 200k' -c 'write -P 9 9M 64k' mid
    qemu-img create -q -f qcow2 -b mid -F qcow2 top 12M
    qemu-io -f qcow2 -c 'write -P 5 0 70k' -c 'write -z 512k 128k' -c 'write -P 6 11M 1M' -c 'discard 5M 64k' top
    qemu-img snapshot -c first top
    qemu-io -f qcow2 -c 'write -P 7 0 1M' top";

/// One of each other kind.
const KINDS: &str = "
    printf hello > tiny
    qemu-img convert -q -c -O qcow2 top compressed
    qemu-img convert -q -O qcow2 -o extended_l2=on top extended
    qemu-io -f qcow2 -c 'write 0 2k' -c 'write 70k 3k' -c 'write -z 16k 16k' extended
    qemu-img create -q -f qcow2 -o preallocation=metadata metadata 1M
    qemu-img create -q -f qcow2 -o data_file=data external 1M
    qemu-io -f qcow2 -c 'write 0 128k' -c 'write 512k 64k' external
    qemu-img create -q -f qcow2 -o compat=0.10 v2 3M
    qemu-io -f qcow2 -c 'write -P 1 100k 1M' v2
    qemu-img create -q -f qcow2 none 0
    qemu-img create -q -f qcow2 -o cluster_size=512 small 1M
    qemu-io -f qcow2 -c 'write -P 1 1k 100k' -c 'write -P 2 700k 1k' small";

/// Makes all of them.
pub(crate) fn sources(pair: &Pair) {
    pair.make(&[RAW, BASE, LAYERS, KINDS]);
}

/// Their names.
pub(crate) const ALL: [&str; 13] = [
    "a.raw",
    "tiny",
    "base",
    "mid",
    "top",
    "compressed",
    "extended",
    "metadata",
    "external",
    "v2",
    "none",
    "small",
    "data",
];
