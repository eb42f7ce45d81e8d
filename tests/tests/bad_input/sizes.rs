//! Amounts of memory and numbers of CPUs.

use crate::case::{Case, refused};

pub(crate) const CASES: &[Case] = &[
    refused(
        "bulkhead-vmm --kernel guest --memory size=0",
        2,
        &["--memory", "2M to"],
    ),
    refused(
        "bulkhead-vmm --kernel guest --memory size=2097153",
        2,
        &["--memory", "page size, 4096"],
    ),
    refused(
        "bulkhead-vmm --kernel guest --memory size=31T",
        1,
        &["--memory", "the host has"],
    ),
    refused(
        "bulkhead-vmm --kernel guest --memory size=much",
        2,
        &["--memory", "size=much"],
    ),
    refused(
        "bulkhead-vmm --kernel guest --memory size=99999999T",
        2,
        &["--memory", "size=99999999T"],
    ),
    refused(
        "bulkhead run --name g --kernel guest --memory 0",
        2,
        &["--memory", "2M to"],
    ),
    refused(
        "bulkhead-vmm --kernel guest --memory size=512",
        2,
        &["--memory", "write 512M"],
    ),
    refused(
        "bulkhead-vmm --kernel guest --memory 512",
        2,
        &["--memory", "write size=512M"],
    ),
    refused(
        "bulkhead run --name g --kernel guest --memory 512",
        2,
        &["--memory", "write 512M"],
    ),
    refused(
        "bulkhead run --name g --kernel guest --memory 2097153",
        2,
        &["--memory", "page size, 4096"],
    ),
    refused(
        "bulkhead run --name g --kernel guest --memory 31T",
        1,
        &["--memory", "the host has"],
    ),
    refused(
        "bulkhead run --name g --kernel guest --memory much",
        2,
        &["--memory", "much"],
    ),
    refused(
        "bulkhead-vmm --kernel guest --cpus boot=0",
        2,
        &["--cpus", "1 to 255"],
    ),
    refused(
        "bulkhead-vmm --kernel guest --cpus boot=256",
        2,
        &["--cpus", "1 to 255"],
    ),
    refused(
        "bulkhead-vmm --kernel guest --cpus boot=4294967297",
        2,
        &["--cpus", "4294967297"],
    ),
    refused(
        "bulkhead run --name g --kernel guest --cpus 0",
        2,
        &["--cpus", "1 to 255"],
    ),
    refused(
        "bulkhead run --name g --kernel guest --cpus 256",
        2,
        &["--cpus", "1 to 255"],
    ),
];
