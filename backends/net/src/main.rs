//! `bulkhead-net`: A vhost-user-net server on a TAP device.

#![forbid(unsafe_code)]

fn main() {}
