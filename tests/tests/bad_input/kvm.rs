//! A host whose /dev/kvm is missing or not for this user.

use crate::case::{Case, Setting, refused};

pub(crate) const CASES: &[Case] = &[
    refused(
        "bulkhead-vmm --kernel guest",
        1,
        &["/dev/kvm", "kvm_intel or kvm_amd"],
    )
    .when(Setting::NoKvm),
    refused(
        "bulkhead run --name g --kernel guest",
        1,
        &["/dev/kvm", "kvm_intel or kvm_amd"],
    )
    .when(Setting::NoKvm),
    refused("bulkhead-vmm --kernel guest", 1, &["/dev/kvm", "group kvm"]).when(Setting::OtherUser),
    refused(
        "bulkhead run --name g --kernel guest",
        1,
        &["/dev/kvm", "group kvm"],
    )
    .when(Setting::OtherUser),
];
