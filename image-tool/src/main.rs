//! `image-tool`: Disk images at rest: create, convert, inspect, check.

#![forbid(unsafe_code)]

fn main() {}
