//! `bulkhead destroy`: ends a guest at once.

use std::process::ExitCode;

use anyhow::Context;

use crate::domain::DomainArg;
use crate::output::Output;
use crate::supervise::control::Request;

/// A guest to be ended.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    domain: DomainArg,
    /// Fail rather than kill a process that does not end
    #[arg(long)]
    graceful: bool,
    /// Remove the guest's logs, too
    #[arg(long)]
    remove_logs: bool,
}

pub(crate) fn run(args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    let domain = args.domain.find()?;
    let name = domain.name();
    let graceful = args.graceful;
    domain
        .request(&Request::Destroy { graceful })
        .with_context(|| format!("Failed to destroy domain '{name}'"))?;
    if args.remove_logs {
        let logs = crate::runtime::logs_of(name)?;
        std::fs::remove_dir_all(&logs)
            .with_context(|| format!("cannot remove {}", logs.display()))?;
    }
    output.success(&format!("Domain '{name}' destroyed"))?;
    Ok(ExitCode::SUCCESS)
}
