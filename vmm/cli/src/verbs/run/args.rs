//! The command line of `bulkhead run`.

use std::path::PathBuf;

use crate::guest::CommandLine;

/// A guest, and how to run it.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) guest: CommandLine,
    /// Socket of a network helper that runs already. Without this option, a helper is started if none runs
    #[arg(long, value_name = "PATH")]
    pub(crate) helper_socket: Option<PathBuf>,
    /// End when the guest reboots, with status 3, instead of starting it again
    #[arg(long)]
    pub(crate) no_reboot: bool,
    /// Run the guest in the background: see 'list', 'console', 'logs' and 'destroy'
    #[arg(long, short, conflicts_with_all = ["dry_run", "verbose"])]
    pub(crate) detach: bool,
    /// Report how each process ends
    #[arg(long, short)]
    pub(crate) verbose: bool,
    /// Start nothing. Print the command of every process, in the order of their start, and warn about each part of
    /// their confinement that this host refuses
    #[arg(long)]
    pub(crate) dry_run: bool,
}
