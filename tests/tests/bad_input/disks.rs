//! Disk images.

use crate::case::{Case, refused};

pub(crate) const CASES: &[Case] = &[
    refused(
        "bulkhead-block --socket-path s --format raw --blk-file missing.raw",
        1,
        &["missing.raw", "No such file"],
    ),
    refused(
        "bulkhead-block --socket-path s --format raw --blk-file folder",
        1,
        &["folder", "Is a directory"],
    ),
    refused(
        "bulkhead-block --socket-path s --format qcow2 --blk-file disk.raw",
        1,
        &["disk.raw", "not in qcow2 format"],
    ),
    refused(
        "bulkhead-block --socket-path s --format qcow2 --blk-file empty",
        1,
        &["empty", "not in qcow2 format"],
    ),
    refused(
        "bulkhead-block --socket-path s --format qcow2 --blk-file orphan.qcow2",
        1,
        &["orphan.qcow2", "gone.qcow2", "No such file"],
    ),
    refused(
        "bulkhead-block --socket-path s --format qcow2 --blk-file loop.qcow2",
        1,
        &["loop.qcow2", "chain loops"],
    ),
    refused(
        "bulkhead-block --socket-path s --format qcow2 --blk-file undeclared.qcow2",
        1,
        &["undeclared.qcow2", "format"],
    ),
    refused(
        "bulkhead-block --socket-path s --blk-file disk.raw",
        2,
        &["disk.raw", "--format raw or --format qcow2"],
    ),
    refused(
        "bulkhead-block --socket-path s --format vmdk --blk-file disk.raw",
        2,
        &["--format", "vmdk"],
    ),
    refused(
        "bulkhead run --name g --kernel guest --disk missing.raw",
        1,
        &["vda", "missing.raw", "No such file"],
    ),
    refused(
        "bulkhead run --name g --kernel guest --disk disk.raw,format=qcow2",
        1,
        &["disk.raw", "not in qcow2 format"],
    ),
    refused(
        "bulkhead run --name g --kernel guest --disk disk.raw --disk orphan.qcow2",
        1,
        &["vdb", "orphan.qcow2", "gone.qcow2", "No such file"],
    ),
    refused(
        "bulkhead run --name g --kernel guest --disk loop.qcow2",
        1,
        &["loop.qcow2", "chain loops"],
    ),
    refused(
        "bulkhead run --name g --kernel guest --disk text",
        2,
        &["text", ",format=raw or ,format=qcow2"],
    ),
    refused(
        "bulkhead run --name g --kernel guest --disk disk.raw,format=vmdk",
        2,
        &["--disk", "vmdk"],
    ),
    refused(
        "image-tool info missing.raw",
        1,
        &["missing.raw", "No such file"],
    ),
    refused(
        "image-tool check -f qcow2 disk.raw",
        1,
        &["disk.raw", "not in qcow2 format"],
    ),
    refused(
        "image-tool convert -f raw -O qcow2 missing.raw new",
        1,
        &["missing.raw", "No such file"],
    ),
    refused(
        "image-tool convert -f qcow2 -O raw disk.raw new",
        1,
        &["disk.raw", "not in qcow2 format"],
    ),
    refused(
        "image-tool convert -f qcow2 -O raw orphan.qcow2 new",
        1,
        &["orphan.qcow2", "gone.qcow2", "No such file"],
    ),
    refused(
        "image-tool convert -f qcow2 -O raw loop.qcow2 new",
        1,
        &["loop.qcow2", "infinite loop"],
    ),
];
