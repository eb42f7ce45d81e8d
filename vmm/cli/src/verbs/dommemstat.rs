//! `bulkhead dommemstat`: prints how much memory a guest has and takes.

use std::process::ExitCode;

use anyhow::Context;

use crate::domain::DomainArg;
use crate::output::Output;
use crate::stats::memory;

/// A guest whose memory is looked at.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    domain: DomainArg,
}

pub(crate) fn run(args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    let domain = args.domain.find()?;
    let failed = || {
        format!(
            "Failed to get memory statistics for domain {}",
            domain.name()
        )
    };
    domain.must_run().with_context(failed)?;
    output.show(&memory::of(&domain), |memory| {
        let rss = memory.rss.map(|rss| format!("rss {rss}\n"));
        format!("actual {}\n{}", memory.actual, rss.unwrap_or_default())
    })?;
    Ok(ExitCode::SUCCESS)
}
