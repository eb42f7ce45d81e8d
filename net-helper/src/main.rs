//! `bulkhead-net-helper`: The only privileged process: bridges, TAP devices, NAT, DHCP.

#![forbid(unsafe_code)]

fn main() {}
