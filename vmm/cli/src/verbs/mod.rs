//! The one list of verbs. A verb is a folder here and a line below.

mod run;

use std::process::ExitCode;

/// What `bulkhead` can be asked to do.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Verb {
    /// Run a guest in the foreground, its console on this terminal, until it ends.
    Run(run::Args),
}

impl Verb {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Run(args) => run::run(args),
        }
    }
}
