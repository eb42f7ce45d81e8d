//! Cases that each run in a process of their own: this very test binary, started again.

#![allow(
    clippy::disallowed_macros,
    reason = "a test reports to whoever runs it"
)]

use std::process::Command;

/// What is shown, and the code that shows it.
pub(crate) type Case = (&'static str, fn());

const IN_CHILD: &str = "BULKHEAD_TEST_CASE";

/// Without the usual harness: its threads would be there before the case begins.
pub(crate) fn main(cases: &[Case]) {
    if let Some(wanted) = std::env::var_os(IN_CHILD) {
        let (_, case) = cases.iter().find(|(name, _)| wanted == *name).unwrap();
        return case();
    }
    let mut failed = 0;
    for (name, _) in cases {
        let child = again(name).status().unwrap();
        println!(
            "test {name} ... {}",
            if child.success() { "ok" } else { "FAILED" }
        );
        failed += u32::from(!child.success());
    }
    println!(
        "\n{} passed, {failed} failed",
        cases.len() - failed as usize
    );
    assert_eq!(failed, 0);
}

/// This test binary, to run one case.
pub(crate) fn again(case: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env(IN_CHILD, case);
    command
}
