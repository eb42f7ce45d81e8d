//! What each process of a guest takes beyond the guest's memory: its proportional share of all mappings but that one.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use super::Measurement;
use crate::guest_command::GuestCommand;
use crate::guest_linux;
use crate::guest_run::GuestRun;
use crate::host_state;
use crate::workplace::{Workplace, scratch_folder};

/// A guest that has used its disk and its network.
const SCRIPT: &str = r#"
dd if=/dev/urandom of=/dev/vda bs=1M count=32 conv=fsync 2>/dev/null || fail "write"
ip link set eth0 up
udhcpc -q -n -t 10 -T 1 -i eth0 -s /dhcp >/dev/null 2>&1 || fail "no address by DHCP"
ping -c 3 "$(cat /gateway)" >/dev/null || fail "ping"
say waiting
while :; do sleep 1; done
"#;

pub(super) fn measure(workplace: &Workplace) -> Result<Vec<Measurement>> {
    let folder = scratch_folder(workplace)?;
    let (initramfs, disk) = (
        folder.path().join("guest.cpio"),
        folder.path().join("disk.qcow2"),
    );
    guest_linux::build(&workplace.kernel()?, SCRIPT, &[], &initramfs)?;
    let mut create = Command::new(workplace.program("image-tool")?);
    super::seconds(
        create
            .args(["create", "-q", "-f", "qcow2"])
            .arg(&disk)
            .arg("256M"),
    )?;
    let mut guest = GuestCommand::new("figures", &initramfs);
    guest.disk = Some(disk.display().to_string());
    guest.net = true;
    let mut run = GuestRun::start(guest.command(workplace)?, Duration::from_secs(180))?;
    run.wait_for("waiting")?;

    let mut measurements = Vec::new();
    let programs = [
        "bulkhead-vmm",
        "bulkhead-block",
        "bulkhead-net",
        "bulkhead-net-helper",
        "bulkhead",
    ];
    for program in programs {
        let processes = host_state::processes()?;
        let own = processes
            .iter()
            .filter(|(_, name)| name == host_state::comm(program));
        let kib = own
            .map(|(pid, _)| beyond_guest_memory(*pid))
            .sum::<Result<u64>>()?;
        measurements.push(Measurement::new(
            format!("PSS of {program}"),
            kib as f64 / 1024.0,
            "MiB",
        ));
    }
    kill_process(
        Pid::from_raw(run.pid().try_into()?).context("process id")?,
        Signal::INT,
    )
    .context("end the guest")?;
    run.wait()?;
    Ok(measurements)
}

/// KiB of proportional set size of all mappings that are no memfd, which is what guest memory is.
fn beyond_guest_memory(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps");
    let text = std::fs::read_to_string(&path).context(path)?;
    Ok(sum(&text))
}

fn sum(smaps: &str) -> u64 {
    let (mut total, mut counts) = (0, true);
    for line in smaps.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["Pss:", kib, "kB"] if counts => total += kib.parse::<u64>().unwrap_or(0),
            // `7f…-7f… rw-s 00000000 00:01 1042 /memfd:guest (deleted)`
            [range, _, _, _, _, ..] if range.contains('-') => counts = !line.contains("/memfd:"),
            _ => {}
        }
    }
    total
}

#[cfg(test)]
mod tests {
    #[test]
    fn guest_memory_does_not_count() {
        let smaps = "1000-2000 r-xp 00000000 08:01 7 /usr/bin/x\nPss:  12 kB\nPss_Dirty: 5 kB\n\
            3000-4000 rw-s 00000000 00:01 9 /memfd:ram (deleted)\nPss: 4096 kB\n\
            5000-6000 rw-p 00000000 00:00 0\nPss: 3 kB\n";
        assert_eq!(super::sum(smaps), 15);
    }
}
