//! `bulkhead run`: a guest in the foreground, from its description to its end.

mod args;
mod child;
mod console;
mod event;
mod helper;
mod options;
mod plan;
mod ready;
mod restarts;
mod signals;
mod supervisor;

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;

use anyhow::Context;
use bulkhead_process::confine::{self, Part, Refused};
use bulkhead_process::warn;

use crate::init;
use crate::runtime::{self, GuestFolder};
pub(crate) use args::Args;
use console::Console;
use plan::{Plan, Process};
use signals::Signals;
use supervisor::{Outcome, Supervisor};

/// The monitor's status when the guest resets.
const RESET: i32 = 3;

pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    if args.dry_run {
        return dry_run(&args);
    }
    let base = runtime::base()?;
    let path = base.join(&args.name);
    if init::is_needed() {
        return init::run();
    }
    warn_of_refused()?;
    let signals = Signals::block().context("cannot watch for signals")?;
    let folder = GuestFolder::claim(&path)?;
    let console = Console::attach().context("cannot use standard input")?;
    let mut supervisor = Supervisor::new(&folder, signals, &console, args.verbose)?;
    let outcome = run_until_end(
        &mut supervisor,
        &Plan::new(&args, &base, &path)?,
        args.no_reboot,
    );
    // Kept over reboots, given back once.
    let closed = supervisor.close();
    let outcome = outcome?;
    closed?;
    Ok(match outcome {
        Outcome::Ended(status) => ExitCode::from(u8::try_from(status).unwrap_or(1)),
        Outcome::Stopped => ExitCode::SUCCESS,
    })
}

fn run_until_end(
    supervisor: &mut Supervisor,
    plan: &Plan,
    no_reboot: bool,
) -> anyhow::Result<Outcome> {
    loop {
        match supervisor.run(plan.clone())? {
            Outcome::Ended(RESET) if !no_reboot => {}
            outcome => return Ok(outcome),
        }
    }
}

/// One warning for all that the host refuses: what the programs say of it at their start is not passed on.
fn warn_of_refused() -> anyhow::Result<()> {
    let is_root = rustix::process::geteuid().is_root();
    let parts: Vec<_> = refused()?
        .iter()
        // Users' guests have no process namespaces on any host.
        .filter(|refused| is_root || refused.part != Part::Processes)
        .map(ToString::to_string)
        .collect();
    if !parts.is_empty() {
        let parts = parts.join("; ");
        warn(&format!(
            "the host does not allow all of the confinement ({parts}): --dry-run says what that means"
        ));
    }
    Ok(())
}

fn refused() -> anyhow::Result<Vec<Refused>> {
    confine::refused().context("cannot try the confinement")
}

/// Lines that a shell can run, each process in a terminal of its own. Beside them, a warning for each thing that this host lacks for it:
/// a plan needs none of them.
fn dry_run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut warnings = Vec::new();
    let base = runtime::base().unwrap_or_else(|error| {
        let usual = runtime::usual_base();
        warnings.push(format!("{error:#}; shown for {}", usual.display()));
        usual
    });
    let folder = base.join(&args.name);
    let plan = Plan::new(args, &base, &folder)?;
    let mut folders = OsString::from("mkdir -p -m 0700 ");
    folders.push(crate::shell::quote(folder.as_os_str()));
    let mut lines = vec![folders];
    if let Some(helper) = plan.helper.as_ref().filter(|helper| !helper.runs()) {
        match &helper.start {
            Some(start) => lines.push(start.command()),
            None => warnings.push(helper.missing().to_string()),
        }
    }
    lines.extend(plan.processes.iter().map(Process::command));
    let mut out = std::io::stdout().lock();
    for line in lines {
        out.write_all(line.as_bytes()).context("standard output")?;
        out.write_all(b"\n").context("standard output")?;
    }
    out.flush().context("standard output")?;
    match refused() {
        Ok(refused) => {
            let advice = |refused: Refused| format!("{refused}: {}", refused.part.advice());
            warnings.extend(refused.into_iter().map(advice));
        }
        Err(error) => warnings.push(format!("{error:#}")),
    }
    warnings.iter().for_each(|warning| warn(warning));
    Ok(ExitCode::SUCCESS)
}
