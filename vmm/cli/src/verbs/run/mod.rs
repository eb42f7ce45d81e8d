//! `bulkhead run`: runs a guest in the foreground until it ends, or in the background.

mod args;

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use bulkhead_process::confine::{self, Part, Refused};
use bulkhead_process::warn;

use crate::guest::{self, Action, Definition, Plan, Process, Site};
use crate::output::Output;
use crate::program::Programs;
use crate::runtime::{self, GuestFolder};
use crate::supervise::state::State;
use crate::supervise::{self, Ending, Ground, Messages, Outcome, Setting, Signals, Supervisor};
use crate::terminal::Console;
use crate::{init, live};
pub(crate) use args::Args;

pub(crate) fn run(args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    if args.dry_run {
        return dry_run(args);
    }
    let base = runtime::base()?;
    if args.detach {
        warn_of_refused()?;
        let definition = definition(args)?;
        let helper = runtime::helper_socket(&base, args.helper_socket.clone());
        let state = supervise::start(definition, false, helper)?;
        let name = &state.definition.name;
        output.success(&format!("Domain '{name}' started"))?;
        return Ok(ExitCode::SUCCESS);
    }
    if init::is_needed() {
        return init::run();
    }
    run_in_foreground(args, &base)
}

fn run_in_foreground(args: &Args, base: &Path) -> anyhow::Result<ExitCode> {
    // The signals are blocked first: one that comes while the host is tried ends the run in order.
    let signals = Signals::block().context("cannot watch for signals")?;
    warn_of_refused()?;
    let definition = definition(args)?;
    let folder = GuestFolder::claim(&base.join(&definition.name))?;
    let console = Console::attach().context("cannot use standard input")?;
    let plan = plan(args, &definition, base)?;
    let mut state = State::new(definition.with_shown_paths(), false, None);
    state.foreground = true;
    live::register(base, folder.path(), &mut state)?;
    let setting = Setting {
        ground: Ground::Fore(console.input()),
        signals,
        terminal: console.terminal(),
        console_log: None,
        messages: Messages::to_standard_error(),
        verbose: args.verbose,
    };
    let mut supervisor = Supervisor::new(&folder, state, setting)?;
    let outcome = supervisor.run(&plan, false);
    // The helper is held over reboots, and released once.
    let closed = supervisor.close(Ending::from(&outcome));
    let waiting = supervisor.into_waiting();
    drop(folder);
    supervise::respond(waiting, &outcome);
    let outcome = outcome?;
    closed?;
    Ok(match outcome {
        Outcome::Ended(status) => ExitCode::from(u8::try_from(status).unwrap_or(1)),
        Outcome::Stopped | Outcome::Destroyed => ExitCode::SUCCESS,
    })
}

fn definition(args: &Args) -> anyhow::Result<Definition> {
    let mut definition = Definition::from(args.guest.clone()).with_absolute_paths()?;
    if args.no_reboot {
        definition.on_reboot = Action::Destroy;
    }
    Ok(definition)
}

/// The plan for the guest on this host.
fn plan(args: &Args, definition: &Definition, base: &Path) -> anyhow::Result<Plan> {
    let helper_socket: Option<PathBuf> = runtime::helper_socket(base, args.helper_socket.clone());
    let site = Site {
        programs: &Programs::find(),
        base,
        helper_socket: helper_socket.as_deref(),
        may_start_helper: rustix::process::geteuid().is_root(),
        console: guest::Console::Terminal,
        sockets: guest::Sockets::Backends,
    };
    Plan::new(definition, &site)
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
    let plan = plan(args, &definition(args)?, &base)?;
    let mut folders = OsString::from("mkdir -p -m 0700 ");
    folders.push(crate::shell::quote(base.join(&args.guest.name).as_os_str()));
    let mut lines = vec![folders];
    if let Some(wanted) = plan
        .helper
        .as_ref()
        .filter(|wanted| !supervise::runs(wanted))
    {
        match &wanted.start {
            Some(start) => lines.push(start.command()),
            None => warnings.push(supervise::missing(wanted).to_string()),
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
