//! QEMU as the machine under the outer host.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{End, OuterHost};

/// How time passes in an outer host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    /// As on this machine, with two processors.
    Host,
    /// One nanosecond per instruction, with one processor: the same run gives the same figure.
    Instructions,
}

/// What a kernel says on its console when its stack is at its end.
const STACK_OVERFLOW: &str = "stack guard page was hit";

/// The size of the outer host's scratch disk. Sparse: what is not written takes no space.
const DISK_SIZE: u64 = 16 << 30;

/// Runs the outer host to its end; the command's output goes to standard output and to `watch` as it comes.
pub(super) fn run(
    host: &OuterHost,
    kernel: &Path,
    initramfs: &Path,
    scratch: &Path,
    watch: &mut (dyn FnMut(&[u8]) + Send),
) -> Result<End> {
    let disk = scratch.join("disk.ext4");
    make_disk(&disk)?;
    let (status, log) = (scratch.join("status"), scratch.join("console.log"));
    let mut qemu = command(host)
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initramfs)
        .arg("-drive")
        .arg(format!(
            "if=virtio,format=raw,cache=unsafe,discard=unmap,file={}",
            disk.display()
        ))
        .arg("-serial")
        .arg(format!("file:{}", log.display()))
        .arg("-chardev")
        .arg(format!("file,id=status,path={}", status.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("qemu-system-x86_64: run `cargo xtask setup`")?;
    let in_time = stream_until_end(&mut qemu, host.time_limit, watch);
    let ended = qemu.wait().context("wait for QEMU")?;

    let status = std::fs::read_to_string(&status).unwrap_or_default();
    match (in_time?, status.trim().parse()) {
        (true, Ok(code)) => Ok(End::Status(code)),
        (in_time, _) => {
            let console = tail(&log, 60);
            if console.contains(STACK_OVERFLOW) {
                return Ok(End::StackOverflow(console));
            }
            let why = match in_time {
                true => format!("ended without a status ({ended})"),
                false => format!("did not end within {} s", host.time_limit.as_secs()),
            };
            bail!("outer host {why}; the end of its console:\n{console}");
        }
    }
}

fn command(host: &OuterHost) -> Command {
    // If this program is killed, so is QEMU.
    let mut command = Command::new("setpriv");
    command.args([
        "--pdeathsig",
        "KILL",
        "qemu-system-x86_64",
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
    ]);
    command.args([
        "-machine",
        "q35",
        "-cpu",
        "max",
        "-display",
        "none",
        "-m",
        &host.memory.to_string(),
    ]);
    match host.clock {
        Clock::Host => command.args(["-accel", "tcg,thread=multi", "-smp", "2"]),
        Clock::Instructions => command.args([
            "-accel",
            "tcg,thread=single",
            "-smp",
            "1",
            "-icount",
            "shift=0",
        ]),
    };
    command.args([
        "-append",
        "console=ttyS0 quiet loglevel=4 panic=-1 rdinit=/init mitigations=off",
    ]);
    command.args([
        "-chardev",
        "file,id=output,path=/dev/stdout",
        "-device",
        "virtio-serial-pci",
    ]);
    command.args(["-device", "virtserialport,chardev=output,name=output"]);
    command.args([
        "-device",
        "virtserialport,chardev=status,name=status",
        "-device",
        "virtio-rng-pci",
    ]);
    command
}

fn make_disk(path: &Path) -> Result<()> {
    File::create(path)
        .and_then(|file| file.set_len(DISK_SIZE))
        .with_context(|| path.display().to_string())?;
    let options = [
        "-q",
        "-F",
        "-t",
        "ext4",
        "-E",
        "lazy_itable_init=1,nodiscard",
        "-O",
        "^has_journal",
    ];
    let made = Command::new("/usr/sbin/mke2fs")
        .args(options)
        .arg(path)
        .status()
        .context("mke2fs")?;
    if !made.success() {
        bail!("mke2fs {}: {made}", path.display());
    }
    Ok(())
}

/// Copies what QEMU prints until it ends. False if it had to be stopped.
fn stream_until_end(
    qemu: &mut Child,
    limit: Duration,
    watch: &mut (dyn FnMut(&[u8]) + Send),
) -> Result<bool> {
    let mut from = qemu.stdout.take().context("QEMU's output")?;
    let (ended, end) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut buffer = [0; 4096];
            let mut to = std::io::stdout();
            while let Ok(length @ 1..) = from.read(&mut buffer) {
                let bytes = buffer.get(..length).unwrap_or_default();
                watch(bytes);
                let _ = to.write_all(bytes).and_then(|()| to.flush());
            }
            drop(ended);
        });
        let in_time = end.recv_timeout(limit) != Err(mpsc::RecvTimeoutError::Timeout);
        if !in_time {
            qemu.kill().context("stop QEMU")?;
        }
        Ok(in_time)
    })
}

/// The last lines of a file, for an error message.
fn tail(path: &Path, lines: usize) -> String {
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    let all: Vec<&str> = text.lines().collect();
    all.get(all.len().saturating_sub(lines)..)
        .unwrap_or_default()
        .join("\n")
}
