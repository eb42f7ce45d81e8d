//! What running guests use, as the kernel counts it: `/proc` for their processes, `/sys` for their TAP devices.

pub(crate) mod address;
pub(crate) mod interface;
pub(crate) mod memory;
pub(crate) mod vcpu;
