//! Kernels and initramfs that cannot be loaded.

use crate::case::{Case, refused};

pub(crate) const CASES: &[Case] = &[
    refused(
        "bulkhead-vmm --kernel missing",
        1,
        &["kernel missing", "No such file"],
    )
    .with_kvm(),
    refused("bulkhead-vmm --kernel empty", 1, &["kernel empty is empty"]).with_kvm(),
    refused(
        "bulkhead-vmm --kernel folder",
        1,
        &["kernel folder is not a file"],
    )
    .with_kvm(),
    refused(
        "bulkhead-vmm --kernel truncated-header",
        1,
        &["kernel truncated-header is truncated"],
    )
    .with_kvm(),
    refused(
        "bulkhead-vmm --kernel truncated-elf",
        1,
        &["kernel truncated-elf is truncated"],
    )
    .with_kvm(),
    refused(
        "bulkhead-vmm --kernel truncated-bzimage",
        1,
        &["kernel truncated-bzimage is truncated"],
    )
    .with_kvm(),
    refused(
        "bulkhead-vmm --kernel text",
        1,
        &["kernel text is not a kernel"],
    )
    .with_kvm(),
    refused(
        "bulkhead run --name g --kernel missing",
        1,
        &["kernel", "/missing", "No such file"],
    )
    .with_kvm(),
    refused(
        "bulkhead run --name g --kernel empty",
        1,
        &["/empty is empty"],
    )
    .with_kvm(),
    refused(
        "bulkhead run --name g --kernel truncated-elf",
        1,
        &["/truncated-elf is truncated"],
    )
    .with_kvm(),
    refused(
        "bulkhead run --name g --kernel text",
        1,
        &["/text is not a kernel"],
    )
    .with_kvm(),
    refused(
        "bulkhead-vmm --kernel guest --initramfs missing",
        1,
        &["initramfs missing", "No such file"],
    )
    .with_kvm(),
    refused(
        "bulkhead-vmm --kernel guest --memory size=64M --initramfs large",
        1,
        &["initramfs large does not fit", "memory"],
    )
    .with_kvm(),
    refused(
        "bulkhead run --name g --kernel guest --memory 64M --initramfs large",
        1,
        &["/large does not fit", "memory"],
    )
    .with_kvm(),
];
