//! `bulkhead autostart`: has a guest started with the host, or not any more.

use std::process::ExitCode;

use anyhow::{Context, bail};

use crate::domain::DomainArg;
use crate::output::Output;
use crate::store::Store;

/// A guest that is started with the host.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    domain: DomainArg,
    /// Do not start it with the host
    #[arg(long)]
    disable: bool,
}

pub(crate) fn run(args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    let domain = args.domain.find()?;
    let name = domain.name();
    if !domain.is_persistent() {
        bail!("Requested operation is not valid: cannot set autostart for transient domain");
    }
    let mark = if args.disable { "unmark" } else { "mark" };
    let store = Store::open()?;
    store
        .change()
        .and_then(|changes| changes.update(name, |text| text.set_autostart(!args.disable)))
        .with_context(|| format!("Failed to {mark} domain '{name}' as autostarted"))?;
    output.success(&format!("Domain '{name}' {mark}ed as autostarted"))?;
    Ok(ExitCode::SUCCESS)
}
