//! `bulkhead dumptoml`: prints the definition of a guest.

use std::process::ExitCode;

use anyhow::Context;

use crate::domain::DomainArg;
use crate::guest::definition;
use crate::output::Output;
use crate::store::Store;

/// A guest whose definition is printed.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    domain: DomainArg,
    /// Print the definition in its file, which a running guest has when it is started next
    #[arg(long)]
    inactive: bool,
}

pub(crate) fn run(args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    let domain = args.domain.find()?;
    if domain.running.is_some() && !args.inactive {
        let running = domain.definition();
        let text = definition::write(running)?;
        output.show(running, |_| text)?;
        return Ok(ExitCode::SUCCESS);
    }
    let stored = Store::open()?.load_text(domain.name())?;
    let stored = stored.with_context(|| {
        format!(
            "domain '{}' is transient: without --inactive its definition is shown",
            domain.name()
        )
    })?;
    // As people have written it.
    let text = String::from_utf8(stored.bytes)?;
    output.show(&stored.definition, |_| text)?;
    Ok(ExitCode::SUCCESS)
}
