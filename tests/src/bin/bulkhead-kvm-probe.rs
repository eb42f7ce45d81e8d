//! Says in one line whether this machine's KVM can run Linux: exit status 0 if so, 1 if not.

#![allow(
    clippy::disallowed_macros,
    reason = "tests, benches and the demo print what they find"
)]

use std::process::ExitCode;

use bulkhead_tests::probe::{Verdict, probe};

fn main() -> ExitCode {
    match probe() {
        Ok(verdict) => {
            println!("{verdict}");
            ExitCode::from(u8::from(verdict != Verdict::CanRunLinux))
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}
