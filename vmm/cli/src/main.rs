//! `bulkhead`: The command people type: runs guests as separate, confined processes.

#![forbid(unsafe_code)]

fn main() {}
