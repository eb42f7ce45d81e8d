//! The list of verbs. Each verb is a file or a folder here, and two lines below.

mod doctor;
mod run;

use std::process::ExitCode;

use crate::output::Output;

/// The verbs of `bulkhead`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Verb {
    Doctor(doctor::Args),
    /// Run a guest in the foreground, with its console on this terminal
    Run(Box<run::Args>),
}

impl Verb {
    /// Runs the verb, which prints by `output`.
    pub(crate) fn run(self, output: Output) -> anyhow::Result<ExitCode> {
        match self {
            Self::Doctor(args) => doctor::run(args, output),
            Self::Run(args) => run::run(*args),
        }
    }
}
