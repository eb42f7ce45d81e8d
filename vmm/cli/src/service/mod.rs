//! What systemd's units start: each of a guest's processes, as [`Plan`] has it, and what belongs to starting and ending
//! one. The units are in `vmm/cli/systemd/`; what only the definition knows is in the drop-ins that [`dropins`] makes.
//!
//! These verbs are in no list, since nobody types them.

mod dropins;
mod process;
mod unit_name;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{anyhow, bail};

use crate::guest::{Definition, guest_name};
use crate::runtime;
use crate::store::Store;
use crate::supervise::state::State;

pub(crate) use unit_name::target;

/// The verb by which units start this program.
pub(crate) const VERB: &str = "unit";

/// The command line of a unit.
#[derive(Debug, clap::Parser)]
pub(crate) struct Args {
    _verb: String,
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, clap::Subcommand)]
enum Task {
    /// Becomes one process of a guest
    Exec {
        /// GUEST/PROCESS
        #[arg(value_parser = guest_and_process)]
        of: (String, String),
    },
    /// Fails if a guest of this name runs that no unit has started
    Check { guest: String },
    /// Presses the power button of a guest, and waits for the end of its monitor
    Stop { guest: String },
    /// Makes the drop-ins of all guests in a folder
    Generate {
        folder: PathBuf,
        /// The folders for units of higher and lower priority, which systemd names, too
        _others: Vec<PathBuf>,
    },
}

pub(crate) fn main(args: Args) -> anyhow::Result<ExitCode> {
    match args.task {
        Task::Exec { of: (guest, name) } => process::exec(&definition(&guest)?, &name)?,
        Task::Check { guest } => check(&guest)?,
        Task::Stop { guest } => process::stop(&guest)?,
        Task::Generate { folder, .. } => dropins::generate(&Store::system(), &folder)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn guest_and_process(words: &str) -> Result<(String, String), String> {
    let (guest, process) = words.split_once('/').ok_or("not GUEST/PROCESS")?;
    Ok((guest_name(guest)?, process.to_owned()))
}

fn definition(guest: &str) -> anyhow::Result<Definition> {
    let store = Store::system();
    let found = store.load(guest)?;
    let path = store.path(guest)?;
    found.ok_or_else(|| anyhow!("there is no guest '{guest}': {} is missing", path.display()))
}

/// Fails if a command runs the guest. Units have their own folder, so neither disturbs the other's files.
fn check(guest: &str) -> anyhow::Result<()> {
    let guest = guest_name(guest).map_err(|wrong| anyhow!(wrong))?;
    let folder = runtime::base()?.join(&guest);
    let orphans = || {
        let Ok(Some(state)) = State::read(&folder) else {
            return false;
        };
        let mut processes = state.processes.iter().filter_map(|process| process.id);
        processes.any(|process| process.is_alive())
    };
    if runtime::is_reserved(&folder) || orphans() {
        bail!("guest '{guest}' is running already: 'bulkhead dominfo {guest}' shows it");
    }
    Ok(())
}
