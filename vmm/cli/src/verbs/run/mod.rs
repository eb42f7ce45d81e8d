//! `bulkhead run`: a guest in the foreground, from its description to its end.

mod args;
mod child;
mod console;
mod event;
mod helper;
mod plan;
mod ready;
mod supervisor;

use std::process::ExitCode;

use bulkhead_process::signals;

use crate::runtime::{self, GuestFolder};
pub(crate) use args::Args;
use plan::Plan;
use supervisor::{Outcome, Supervisor};

/// The monitor's status when the guest resets.
const RESET: i32 = 3;

pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let base = runtime::base()?;
    let path = base.join(&args.name);
    if args.dry_run {
        return dry_run(&Plan::new(&args, &base, &path)?, &path);
    }
    // Before any thread, so that none of them takes the signals.
    let signals = signals::block_termination()?;
    let folder = GuestFolder::claim(&path)?;
    let console = console::Console::attach()?;
    let mut supervisor = Supervisor::new(&folder, signals, console.input(), args.verbose)?;
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

/// Lines that a shell can run, each process in a terminal of its own.
fn dry_run(plan: &Plan, folder: &std::path::Path) -> anyhow::Result<ExitCode> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "mkdir -p -m 0700 {}",
        crate::shell::quote(folder.as_os_str())
    )?;
    let helper = plan.helper.as_ref().filter(|helper| !helper.runs());
    if let Some(helper) = helper {
        let start = helper.start.as_ref().ok_or_else(|| helper.missing())?;
        writeln!(out, "{}", start.command())?;
    }
    for process in &plan.processes {
        writeln!(out, "{}", process.command())?;
    }
    Ok(ExitCode::SUCCESS)
}
