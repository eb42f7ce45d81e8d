//! What `--help` and the man page of a verb say beside its options.

use std::fmt::Write as _;

use crate::output::report;

/// The texts of one verb.
#[derive(Debug)]
pub(crate) struct Manual {
    /// One line, without a full stop.
    pub(crate) about: &'static str,
    pub(crate) description: &'static str,
    /// Each exit status with its meaning.
    pub(crate) statuses: &'static [(u8, &'static str)],
    /// Commands, each with what it does.
    pub(crate) examples: &'static [(&'static str, &'static str)],
}

/// The exit statuses of most verbs.
pub(crate) const DONE_OR_FAILED: &[(u8, &str)] = &[(0, "it is done"), (1, "it failed")];

impl Manual {
    /// The end of `--help`: exit statuses and examples, under the name by which the program was started.
    pub(crate) fn after_options(&self) -> String {
        let mut text = String::from("Exit status:\n");
        text.push_str(&self.status_lines());
        text.push_str("\nExamples:\n");
        for (what, command) in self.examples {
            let command = command.replacen("image-tool", report::program(), 1);
            let _ = writeln!(text, "  {what}:\n    {command}");
        }
        text.trim_end().to_owned()
    }

    /// A line for each exit status, the meanings in one column.
    pub(crate) fn status_lines(&self) -> String {
        let digits = |status: u8| status.to_string().len();
        let width = self
            .statuses
            .iter()
            .map(|(status, _)| digits(*status))
            .max();
        let width = width.unwrap_or(1);
        let lines = self.statuses.iter();
        lines
            .map(|(status, meaning)| format!("  {status:<width$}  {meaning}\n"))
            .collect()
    }
}
