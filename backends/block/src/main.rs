//! `bulkhead-block`: A vhost-user-blk server for raw and qcow2 images.

#![forbid(unsafe_code)]

fn main() {}
