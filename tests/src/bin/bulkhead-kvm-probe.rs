//! Says in one line whether this machine's KVM can run Linux: exit status 0 if so, 1 if not.

#![allow(
    clippy::disallowed_macros,
    reason = "tests, benches and the demo print what they find"
)]

use std::process::ExitCode;

use bulkhead_tests::probe::{Verdict, probe};

fn main() -> ExitCode {
    let verdict = probe();
    println!("{verdict}");
    ExitCode::from(u8::from(verdict != Verdict::RunsLinux))
}
