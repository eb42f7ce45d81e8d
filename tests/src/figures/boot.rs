//! From the start of a monitor to the guest's first line in user space, in virtual time: one instruction, one
//! nanosecond.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::Measurement;
use crate::guest_linux::{self, CMDLINE};
use crate::workplace::{Workplace, scratch_folder};

const FIRST_LINE: &str = "guest: up";

/// Bulkhead, and QEMU's fastest machine, with the same kernel, initramfs and console output.
pub(super) fn measure(workplace: &Workplace) -> Result<Vec<Measurement>> {
    let folder = scratch_folder(workplace)?;
    let kernel = workplace.kernel()?;
    let initramfs = folder.path().join("guest.cpio");
    guest_linux::build(&kernel, "", &[], &initramfs)?;
    let ours = |image: &Path| {
        let mut monitor = Command::new(workplace.program("bulkhead-vmm")?);
        monitor.args([
            "--memory",
            "size=512M",
            "--serial",
            "tty",
            "--cmdline",
            CMDLINE,
        ]);
        monitor
            .arg("--kernel")
            .arg(image)
            .arg("--initramfs")
            .arg(&initramfs);
        until_first_line(&mut monitor)
    };
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args([
        "-machine",
        "microvm,acpi=on,pcie=on",
        "-accel",
        "kvm",
        "-cpu",
        "host",
        "-m",
        "512",
    ]);
    qemu.args([
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-serial",
        "stdio",
        "-no-reboot",
    ]);
    qemu.args(["-append", CMDLINE])
        .arg("-kernel")
        .arg(kernel.bzimage());
    qemu.arg("-initrd").arg(&initramfs);
    let measurement =
        |what, value| Measurement::new(format!("boot of {what} to user space"), value, "virtual s");
    Ok(vec![
        measurement("bzImage", ours(&kernel.bzimage())?)
            .against("QEMU microvm", until_first_line(&mut qemu)?),
        measurement("vmlinux", ours(&kernel.vmlinux())?),
    ])
}

/// Seconds from the start of the monitor until the guest's first line; the guest then powers off by itself.
fn until_first_line(monitor: &mut Command) -> Result<f64> {
    let start = Instant::now();
    let mut child = monitor
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("start the monitor")?;
    let mut console = BufReader::new(child.stdout.take().context("console")?)
        .lines()
        .map_while(Result::ok);
    let took = console
        .find(|line| line.contains(FIRST_LINE))
        .map(|_| start.elapsed());
    // Read on, or the guest would wait for its console.
    console.for_each(drop);
    let status = child.wait().context("wait for the monitor")?;
    match took {
        Some(took) => Ok(took.as_secs_f64()),
        None => bail!("the guest did not get to user space ({status})"),
    }
}
