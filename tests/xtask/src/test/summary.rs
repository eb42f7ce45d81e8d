//! The table at the end.

use std::process::ExitCode;

use super::step::Outcome;

/// What came of all steps.
#[derive(Default)]
pub(super) struct Summary {
    rows: Vec<String>,
    passed: usize,
    failed: Vec<String>,
    skipped: Vec<String>,
}

impl Summary {
    pub(super) fn add(&mut self, name: &str, outcome: &Outcome) {
        let (passed, failed, skipped) =
            (outcome.passed, outcome.failed.len(), outcome.skipped.len());
        let result = match (passed, failed, skipped) {
            (_, 1.., _) => "FAILED",
            (0, 0, 1..) => "skipped",
            _ => "ok",
        };
        let seconds = outcome.took.as_secs_f64();
        self.rows.push(format!(
            "{name:<12} {result:<8} {passed:>6} {failed:>6} {skipped:>7} {seconds:>8.1}"
        ));
        self.passed += passed;
        self.failed
            .extend(outcome.failed.iter().map(|what| format!("{name}: {what}")));
        self.skipped
            .extend(outcome.skipped.iter().map(|what| format!("{name}: {what}")));
    }

    pub(super) fn print(&self) -> ExitCode {
        println!(
            "\n{:<12} {:<8} {:>6} {:>6} {:>7} {:>8}",
            "step", "result", "passed", "failed", "skipped", "seconds"
        );
        for row in &self.rows {
            println!("{row}");
        }
        for skipped in &self.skipped {
            println!("skipped {skipped}");
        }
        for failed in &self.failed {
            println!("FAILED {failed}");
        }
        println!(
            "{} passed, {} failed, {} skipped",
            self.passed,
            self.failed.len(),
            self.skipped.len()
        );
        if self.failed.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}
