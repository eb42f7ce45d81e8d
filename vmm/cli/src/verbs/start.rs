//! `bulkhead start`: starts a defined guest in the background.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};

use super::console;
use crate::domain::{Domain, DomainArg};
use crate::output::Output;
use crate::supervise::control::Request;
use crate::{runtime, supervise};

/// A guest to be started.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    domain: DomainArg,
    /// Connect this terminal to the guest's console
    #[arg(long)]
    console: bool,
    /// Suspend the guest as soon as it runs
    #[arg(long)]
    paused: bool,
    /// Socket of a network helper that runs already. Without this option, a helper is started if none runs
    #[arg(long, value_name = "PATH")]
    helper_socket: Option<PathBuf>,
}

pub(crate) fn run(args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    let domain = args.domain.find()?;
    let name = domain.name();
    if domain.running.is_some() {
        bail!("Domain is already active: 'bulkhead domstate {name}' shows its state");
    }
    Domain::check_unique(domain.definition())
        .with_context(|| format!("Failed to start domain '{name}'"))?;
    let helper = runtime::helper_socket(domain.base(), args.helper_socket.clone());
    supervise::start(domain.definition().clone(), domain.is_persistent(), helper)
        .with_context(|| format!("Failed to start domain '{name}'"))?;
    let domain = Domain::find(name)?;
    if args.paused {
        domain
            .request(&Request::Suspend)
            .with_context(|| format!("Failed to suspend domain '{name}'"))?;
    }
    output.success(&format!("Domain '{name}' started"))?;
    match args.console {
        true => console::attach(&domain, false, output),
        false => Ok(ExitCode::SUCCESS),
    }
}
