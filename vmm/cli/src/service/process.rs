//! Becomes one process of a guest, and ends a guest in order.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, anyhow, bail};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::guest::{Console, Definition, Plan, Process, Role, Site, Sockets, guest_name};
use crate::program::Programs;
use crate::runtime::{SYSTEM_HELPER, UNITS};
use crate::supervise::api;

fn site(programs: &Programs) -> Site<'_> {
    Site {
        programs,
        base: Path::new(UNITS),
        helper_socket: Some(Path::new(SYSTEM_HELPER)),
        may_start_helper: false,
        console: Console::Socket,
        sockets: Sockets::ServiceManager,
    }
}

/// Becomes a process of the guest.
///
/// # Errors
/// When the guest has no such process, its socket was not passed, or the program cannot be started.
pub(super) fn exec(guest: &Definition, name: &str) -> anyhow::Result<()> {
    let process = process(guest, name, &Programs::find())?;
    if process.role == Role::Backend {
        check_passed(std::env::var_os("LISTEN_FDS"))?;
    }
    let program = &process.program.path;
    let error = Command::new(program).args(&process.args).exec();
    Err(error).with_context(|| format!("cannot start {}", program.display()))
}

/// The process of this name.
fn process(guest: &Definition, name: &str, programs: &Programs) -> anyhow::Result<Process> {
    let plan = Plan::new(guest, &site(programs))?;
    let names = || {
        let names = plan.processes.iter().map(|process| process.name.as_str());
        names.collect::<Vec<_>>().join(", ")
    };
    let missing = || {
        let guest = &guest.name;
        anyhow!("guest '{guest}' has no '{name}', only {}", names())
    };
    let found = plan.processes.iter().find(|process| process.name == name);
    found.cloned().ok_or_else(missing)
}

/// Checks that there is one socket of the service manager's, which has the number after standard error's.
fn check_passed(number: Option<OsString>) -> anyhow::Result<()> {
    match number {
        Some(number) if number == "1" => Ok(()),
        _ => bail!(
            "a backend needs the one socket that its .socket unit listens on: start that unit, or the guest's target"
        ),
    }
}

/// Presses the power button of the guest, and waits until its monitor ends. The service manager ends this process when
/// that takes too long.
///
/// # Errors
/// When the monitor cannot be asked.
pub(super) fn stop(guest: &str) -> anyhow::Result<()> {
    // Without it, the monitor has ended.
    let Some(pid) = std::env::var_os("MAINPID") else {
        return Ok(());
    };
    let pid = pid.to_str().and_then(|pid| pid.parse().ok());
    let pid = pid.and_then(Pid::from_raw).context("MAINPID is wrong")?;
    let guest = guest_name(guest).map_err(|wrong| anyhow!(wrong))?;
    let monitor = match pidfd_open(pid, PidfdFlags::empty()) {
        Err(Errno::SRCH) => return Ok(()),
        monitor => monitor.context("cannot watch the monitor")?,
    };
    let programs = Programs::find();
    let definition = Definition::new(guest, "/".into());
    let api = site(&programs).monitor_socket(&definition, "api");
    api::put(&api, "vm.power-button")?;
    loop {
        match poll(&mut [PollFd::new(&monitor, PollFlags::IN)], None) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for the monitor"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::definition::Text;

    fn guest() -> Definition {
        let text = "name = \"a-b\"\nkernel = \"/k\"\n\
                    [[disks]]\npath = \"/images/my disk.raw\"\nformat = \"raw\"\n\
                    [[nets]]\nnetwork = \"default\"\nmac = \"52:54:00:00:00:01\"\n";
        Text::parse(text.as_bytes()).unwrap().1
    }

    #[test]
    fn each_process_of_the_plan_is_found_by_its_name() {
        let programs = Programs::find();
        let plan = Plan::new(&guest(), &site(&programs)).unwrap();
        assert_eq!(plan.processes.len(), 3);
        for planned in &plan.processes {
            let found = process(&guest(), &planned.name, &programs).unwrap();
            assert_eq!(found.program.path, planned.program.path);
            assert_eq!(found.args, planned.args);
        }
        let disk = process(&guest(), "vda", &programs).unwrap();
        assert!(disk.args.contains(&"/images/my disk.raw".into()));
        let error = process(&guest(), "vdb", &programs).unwrap_err();
        let error = error.to_string();
        assert_eq!(error, "guest 'a-b' has no 'vdb', only net0, vda, vmm");
    }

    #[test]
    fn a_backend_is_started_with_one_socket() {
        assert!(check_passed(Some("1".into())).is_ok());
        for number in [None, Some("0".into()), Some("2".into())] {
            assert!(check_passed(number).is_err());
        }
    }
}
