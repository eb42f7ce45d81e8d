//! `xtask`: The developers' one door: setup, demo, test, bench.

#![forbid(unsafe_code)]

fn main() {}
