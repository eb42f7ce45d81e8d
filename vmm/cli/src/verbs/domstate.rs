//! `bulkhead domstate`: prints the state of a guest.

use std::process::ExitCode;

use serde::Serialize;

use crate::domain::DomainArg;
use crate::output::Output;

/// A guest whose state is printed.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    domain: DomainArg,
    /// Print why it is in that state, too
    #[arg(long)]
    reason: bool,
}

#[derive(Serialize)]
struct Shown {
    state: String,
    reason: String,
}

pub(crate) fn run(args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    let (state, reason) = args.domain.find()?.state();
    let shown = Shown {
        state: state.to_string(),
        reason: reason.to_string(),
    };
    output.show(&shown, |shown| match args.reason {
        true => format!("{} ({})\n", shown.state, shown.reason),
        false => format!("{}\n", shown.state),
    })?;
    Ok(ExitCode::SUCCESS)
}
