//! The list of verbs. Each verb is a file or a folder here, and two lines below.

mod run;

use std::process::ExitCode;

use crate::output::Output;

/// The verbs of `bulkhead`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Verb {
    /// Run a guest in the foreground, with its console on this terminal
    Run(run::Args),
}

impl Verb {
    /// Runs the verb, which prints by `output`.
    #[allow(unused_variables, reason = "the verbs that print use it")]
    pub(crate) fn run(self, output: Output) -> anyhow::Result<ExitCode> {
        match self {
            Self::Run(args) => run::run(args),
        }
    }
}
