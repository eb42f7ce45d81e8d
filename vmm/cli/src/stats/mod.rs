//! What running guests use, as the kernel counts it: `/proc` for their processes, `/sys` for their TAP devices.

pub(crate) mod interface;
pub(crate) mod vcpu;
