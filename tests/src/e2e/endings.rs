//! How a run can end other than by the guest's power-off.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use rustix::process::Signal;

use super::{Stage, process_of, signal};
use crate::guest_run::GuestRun;
use crate::workplace::Workplace;

/// A guest with all its devices in use that never ends by itself.
const WAITER: &str = r#"
ip link set eth0 up
udhcpc -q -n -t 10 -T 1 -i eth0 -s /dhcp >/dev/null 2>&1 || fail "no address by DHCP"
say waiting
while :; do dd if=/dev/urandom of=/dev/vda bs=64k count=16 conv=fsync 2>/dev/null; done
"#;

/// Ctrl-C, which reaches `bulkhead run` as SIGINT.
pub(super) fn interrupt(workplace: &Workplace) -> Result<()> {
    let stage = Stage::new(workplace)?;
    let (mut run, _image) = waiting_guest(&stage)?;
    run.wait_for("waiting")?;
    signal(run.pid(), Signal::INT)?;
    let end = run.wait()?;
    ensure!(
        end.status.success(),
        "bulkhead run: {}; it said:\n  {}",
        end.status,
        end.errors.join("\n  ")
    );
    for exit in &end.exits {
        let ours = exit
            .program
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("bulkhead"));
        ensure!(!ours || exit.status == 0, "{exit:?}");
    }
    stage.nothing_left()
}

/// `bulkhead-vmm` is killed: the run is over, with an error that says so.
pub(super) fn monitor_killed(workplace: &Workplace) -> Result<()> {
    let stage = Stage::new(workplace)?;
    let (mut run, _image) = waiting_guest(&stage)?;
    run.wait_for("waiting")?;
    signal(process_of("bulkhead-vmm")?, Signal::KILL)?;
    let end = run.wait()?;
    let said = end.errors.join("\n  ");
    ensure!(
        end.status.code() == Some(1),
        "bulkhead run: {}; it said:\n  {said}",
        end.status
    );
    let errors = end
        .errors
        .iter()
        .filter(|line| line.starts_with("error: "))
        .count();
    ensure!(errors == 1, "one error line was expected:\n  {said}");
    stage.nothing_left()
}

/// The guest reboots; `--no-reboot` makes that the end.
pub(super) fn reset(workplace: &Workplace) -> Result<()> {
    ends_with(workplace, "reboot -f", "", 3)
}

/// The guest reboots by a triple fault (`reboot=triple`), which is how a crash looks from outside.
pub(super) fn crash(workplace: &Workplace) -> Result<()> {
    ends_with(workplace, "reboot -f", "reboot=triple", 4)
}

fn ends_with(
    workplace: &Workplace,
    script: &str,
    cmdline: &'static str,
    status: i32,
) -> Result<()> {
    let stage = Stage::new(workplace)?;
    let mut guest = stage.guest(script, &[])?;
    guest.cmdline = cmdline;
    guest.options = &["--no-reboot"];
    let end = stage.run(&guest)?.wait()?;
    let said = end.errors.join("\n  ");
    ensure!(
        end.status.code() == Some(status),
        "bulkhead run: {}; it said:\n  {said}",
        end.status
    );
    stage.nothing_left()
}

fn waiting_guest(stage: &Stage<'_>) -> Result<(GuestRun, PathBuf)> {
    let mut guest = stage.guest(WAITER, &[])?;
    let image = stage.disk("64M")?;
    guest.disk = Some(image.display().to_string());
    guest.net = true;
    Ok((stage.run(&guest)?, image))
}
