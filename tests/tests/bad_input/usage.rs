//! Arguments that are missing or unknown.

use crate::case::{Case, refused};

pub(crate) const CASES: &[Case] = &[
    refused("bulkhead --no-such", 2, &["--no-such"]),
    refused("bulkhead no-such", 2, &["no-such"]),
    refused("bulkhead run --no-such", 2, &["--no-such"]),
    refused("bulkhead run --kernel guest", 2, &["--name"]),
    refused("bulkhead run --name g", 2, &["--kernel"]),
    refused(
        "bulkhead run --name ../g --kernel guest",
        2,
        &["--name", "../g"],
    ),
    refused("bulkhead-vmm --no-such", 2, &["--no-such"]),
    refused("bulkhead-vmm", 2, &["--kernel"]),
    refused("bulkhead-block --no-such", 2, &["--no-such"]),
    refused(
        "bulkhead-block --format raw --blk-file disk.raw",
        2,
        &["--socket-path"],
    ),
    refused("bulkhead-block --socket-path s", 2, &["--blk-file"]),
    refused("bulkhead-net --no-such", 2, &["--no-such"]),
    refused("bulkhead-net --tap tap0", 2, &["--socket-path"]),
    refused(
        "bulkhead-net --socket-path s",
        2,
        &["--tap", "--tap-fd", "--network"],
    ),
    refused("bulkhead-net-helper --no-such", 2, &["--no-such"]),
    // image-tool has qemu-img's messages and statuses; its own tests compare them.
];
