//! `bulkhead domuuid`: prints the UUID of a guest.

use std::process::ExitCode;

use crate::domain::DomainArg;
use crate::output::Output;

/// A guest whose UUID is printed.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    domain: DomainArg,
}

pub(crate) fn run(args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    let uuid = args.domain.find()?.definition().uuid();
    output.show(&uuid, |uuid| format!("{uuid}\n"))?;
    Ok(ExitCode::SUCCESS)
}
