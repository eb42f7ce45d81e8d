//! The list of verbs. Each verb is a folder here and a line below.

mod run;

use std::process::ExitCode;

/// The verbs of `bulkhead`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Verb {
    /// Run a guest in the foreground, with its console on this terminal
    Run(run::Args),
}

impl Verb {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Run(args) => run::run(args),
        }
    }
}
