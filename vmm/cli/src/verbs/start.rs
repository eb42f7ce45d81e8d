//! `bulkhead start`: starts a defined guest in the background.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};

use super::console;
use crate::domain::{Domain, DomainArg};
use crate::guest::Definition;
use crate::output::Output;
use crate::supervise::control::Request;
use crate::{live, runtime, supervise};

/// A guest to be started.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    domain: DomainArg,
    #[command(flatten)]
    how: How,
}

/// How a guest is started in the background.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct How {
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
    let definition = domain.definition().clone();
    args.how
        .start(definition, domain.is_persistent())
        .with_context(|| format!("Failed to start domain '{name}'"))?;
    output.success(&format!("Domain '{name}' started"))?;
    args.how.attach(name, output)
}

impl How {
    /// Starts a guest.
    ///
    /// # Errors
    /// When it cannot be started, or suspended where that is wanted.
    pub(crate) fn start(&self, definition: Definition, persistent: bool) -> anyhow::Result<()> {
        Domain::check_unique(&definition)?;
        let base = runtime::known_base();
        let helper = runtime::helper_socket(&base, self.helper_socket.clone());
        let state = supervise::start(definition, persistent, helper)?;
        let name = &state.definition.name;
        if self.paused {
            live::request(&base, name, &Request::Suspend)
                .with_context(|| format!("Failed to suspend domain '{name}'"))?;
        }
        Ok(())
    }

    /// Connects this terminal to the console of the guest that was started, if that is wanted.
    ///
    /// # Errors
    /// When it cannot.
    pub(crate) fn attach(&self, name: &str, output: Output) -> anyhow::Result<ExitCode> {
        match self.console {
            true => console::attach(&Domain::find(name)?, false, output),
            false => Ok(ExitCode::SUCCESS),
        }
    }
}
