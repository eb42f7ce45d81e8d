//! `bulkhead run`: runs a guest in the foreground until it ends.

mod args;
mod child;
mod console;
mod event;
mod helper;
mod ready;
mod restarts;
mod signals;
mod supervisor;

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use bulkhead_process::confine::{self, Part, Refused};
use bulkhead_process::warn;

use crate::guest::{Definition, Plan, Process, Site};
use crate::init;
use crate::program::Programs;
use crate::runtime::{self, GuestFolder};
pub(crate) use args::Args;
use console::Console;
use signals::Signals;
use supervisor::{Outcome, Supervisor};

/// The socket of the helper that root starts.
pub(crate) const SYSTEM_HELPER: &str = "/run/bulkhead/net-helper.sock";

/// The monitor's status when the guest resets.
const RESET: i32 = 3;

pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    if args.dry_run {
        return dry_run(&args);
    }
    let base = runtime::base()?;
    if init::is_needed() {
        return init::run();
    }
    // The signals are blocked first: one that comes while the host is tried ends the run in order.
    let signals = Signals::block().context("cannot watch for signals")?;
    warn_of_refused()?;
    let folder = GuestFolder::claim(&base.join(&args.guest.name))?;
    let console = Console::attach().context("cannot use standard input")?;
    let mut supervisor = Supervisor::new(&folder, signals, &console, args.verbose)?;
    let plan = plan(&args, &base)?;
    let outcome = run_until_end(&mut supervisor, &plan, args.no_reboot);
    // The helper is held over reboots, and released once.
    let closed = supervisor.close();
    let outcome = outcome?;
    closed?;
    Ok(match outcome {
        Outcome::Ended(status) => ExitCode::from(u8::try_from(status).unwrap_or(1)),
        Outcome::Stopped => ExitCode::SUCCESS,
    })
}

/// The plan for the guest on this host.
fn plan(args: &Args, base: &Path) -> anyhow::Result<Plan> {
    let guest = Definition::from(args.guest.clone()).with_absolute_paths()?;
    let root = rustix::process::geteuid().is_root();
    let own = base.join("net-helper.sock");
    let system = Path::new(SYSTEM_HELPER);
    let helper_socket = match &args.helper_socket {
        // A user may share the helper that root has started.
        None if !root && !own.exists() && system.exists() => Some(system),
        named => named.as_deref(),
    };
    let site = Site {
        programs: &Programs::find(),
        base,
        helper_socket,
        may_start_helper: root,
    };
    Plan::new(&guest, &site)
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

/// Writes one warning about all that the host refuses. The programs' own warnings about it are not passed on.
fn warn_of_refused() -> anyhow::Result<()> {
    let is_root = rustix::process::geteuid().is_root();
    let parts: Vec<_> = refused()?
        .iter()
        // Only root's guests have process namespaces, on any host.
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

/// Prints the commands, each to be run in a terminal of its own, and warns about what this host lacks for them.
fn dry_run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut warnings = Vec::new();
    let base = runtime::base().unwrap_or_else(|error| {
        let usual = runtime::usual_base();
        warnings.push(format!("{error:#}; shown for {}", usual.display()));
        usual
    });
    let plan = plan(args, &base)?;
    let mut folders = OsString::from("mkdir -p -m 0700 ");
    folders.push(crate::shell::quote(base.join(&args.guest.name).as_os_str()));
    let mut lines = vec![folders];
    if let Some(wanted) = plan.helper.as_ref().filter(|wanted| !helper::runs(wanted)) {
        match &wanted.start {
            Some(start) => lines.push(start.command()),
            None => warnings.push(helper::missing(wanted).to_string()),
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
