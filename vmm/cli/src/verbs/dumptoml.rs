//! `bulkhead dumptoml`: prints the definition of a guest.

use std::process::ExitCode;

use crate::domain::DomainArg;
use crate::guest::definition;
use crate::output::Output;
use crate::store::Store;

/// A guest whose definition is printed.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    domain: DomainArg,
    /// Print the definition in its file, even if it runs with another one
    #[arg(long)]
    inactive: bool,
}

pub(crate) fn run(args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    let domain = args.domain.find()?;
    // As people have written it.
    let stored = Store::open()?.load_text(domain.name())?;
    let text = match stored {
        Some(stored) => String::from_utf8(stored.bytes)?,
        None => definition::write(domain.definition())?,
    };
    output.show(domain.definition(), |_| text)?;
    Ok(ExitCode::SUCCESS)
}
