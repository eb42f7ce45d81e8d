//! `bulkhead-vmm`: A thin virtual machine monitor: vCPUs, guest RAM, PCI and one vhost-user frontend.

#![forbid(unsafe_code)]

fn main() {}
