//! `bulkhead domdisplay`: says that a guest has no graphical display.

use std::process::ExitCode;

use anyhow::bail;

use crate::domain::DomainArg;
use crate::output::Output;

/// A guest whose graphical display is asked for.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    domain: DomainArg,
    /// For virsh's sake: there is no display, of whatever type
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// For virsh's sake, too
    #[arg(long)]
    include_password: bool,
    /// For virsh's sake, too
    #[arg(long)]
    all: bool,
}

pub(crate) fn run(args: &Args, _: Output) -> anyhow::Result<ExitCode> {
    let domain = args.domain.find()?;
    bail!(
        "No graphical display found: guests have a serial console, see 'bulkhead console {}'",
        domain.name()
    );
}
