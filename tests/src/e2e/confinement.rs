//! What an intruder in a running process can do: not open a file, not reach the network, not start a program.

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;

use super::{Stage, process_of, signal};
use crate::inject::{Host, Intruder};
use crate::workplace::Workplace;

const WAITER: &str = r#"
ip link set eth0 up
udhcpc -q -n -t 10 -T 1 -i eth0 -s /dhcp >/dev/null 2>&1 || fail "no address by DHCP"
dd if=/dev/vda of=/dev/null bs=1M count=1 2>/dev/null || fail "read /dev/vda"
say waiting
while :; do sleep 1; done
"#;

/// Makes the calls in each process of a guest that is running.
pub(super) fn refused(workplace: &Workplace) -> Result<()> {
    let stage = Stage::new(workplace)?;
    let mut guest = stage.guest(WAITER, &[])?;
    guest.disk = Some(stage.disk("64M")?.display().to_string());
    guest.net = true;
    let mut run = stage.run(&guest)?;
    run.wait_for("waiting")?;

    for program in [
        "bulkhead-vmm",
        "bulkhead-block",
        "bulkhead-net",
        "bulkhead-net-helper",
    ] {
        let intruder = Intruder::enter(process_of(program)?).with_context(|| program.to_owned())?;
        let reached = intruder.reach(&Host {
            file: "/etc/passwd".into(),
            socket: "/run/bulkhead/net-helper.sock".into(),
            process: std::process::id(),
        })?;
        ensure!(reached.is_empty(), "{program}: {}", reached.join(", "));
    }

    // None of them has taken harm.
    signal(run.pid(), Signal::INT)?;
    let end = run.wait()?;
    if !end.status.success() {
        bail!(
            "bulkhead run: {}; it said:\n  {}",
            end.status,
            end.errors.join("\n  ")
        );
    }
    let warning = end
        .errors
        .iter()
        .find(|line| line.contains("does not allow"));
    ensure!(warning.is_none(), "it said: {}", end.errors.join("\n  "));
    stage.nothing_left()
}
