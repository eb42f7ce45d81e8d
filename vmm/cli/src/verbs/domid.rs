//! `bulkhead domid`: prints the id of a guest.

use std::process::ExitCode;

use crate::domain::DomainArg;
use crate::output::Output;

/// A guest whose id is printed.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    domain: DomainArg,
}

pub(crate) fn run(args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    let domain = args.domain.find()?;
    output.show(&domain.id(), |_| format!("{}\n", domain.shown_id()))?;
    Ok(ExitCode::SUCCESS)
}
