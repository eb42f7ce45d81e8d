//! What `bulkhead run --dry-run` prints is what one can run by hand.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::{Stage, TIME_LIMIT};
use crate::workplace::Workplace;

/// Uses the disk and the network once.
const SCRIPT: &str = r#"
dd if=/dev/vda of=/dev/null bs=1M count=1 2>/dev/null || fail "read /dev/vda"
ip link set eth0 up
udhcpc -q -n -t 10 -T 1 -i eth0 -s /dhcp >/dev/null 2>&1 || fail "no address by DHCP"
say "ok disk and network work"
"#;

/// Runs the commands exactly as printed, each in a shell of its own, in the order printed.
pub(super) fn commands(workplace: &Workplace) -> Result<()> {
    let stage = Stage::new(workplace)?;
    let mut guest = stage.guest(SCRIPT, &[])?;
    guest.disk = Some(stage.disk("64M")?.display().to_string());
    guest.net = true;
    guest.options = &["--dry-run"];
    let output = guest.command(workplace)?.output().context("bulkhead")?;
    ensure!(
        output.status.success(),
        "bulkhead run --dry-run: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    stage
        .nothing_left()
        .context("a dry run has done something")?;

    let printed = String::from_utf8(output.stdout)?;
    let mut processes = Vec::new();
    for line in printed.lines().filter(|line| !line.is_empty()) {
        run_line(workplace, line, &mut processes)?;
    }
    ensure!(
        processes.len() == 4,
        "four processes were expected:\n{printed}"
    );
    let console = processes
        .last_mut()
        .and_then(|(_, child)| child.stdout.take())
        .context("the monitor's output")?;
    let lines: Vec<String> = BufReader::new(console)
        .lines()
        .map_while(Result::ok)
        .collect();
    let works = lines
        .iter()
        .any(|line| line.contains("guest: ok disk and network work"));
    ensure!(works, "the guest's console:\n  {}", lines.join("\n  "));
    for (line, child) in &mut processes {
        let status = wait(child)?;
        ensure!(status.success(), "{status}: {line}");
    }
    // `mkdir` was one of the lines, so the folder is the user's to remove.
    std::fs::remove_dir("/run/bulkhead/scenario").context("runtime folder of the guest")?;
    let _ = std::fs::remove_dir("/run/bulkhead");
    stage.nothing_left()
}

/// Starts one line; a process is in place once its socket is.
fn run_line(workplace: &Workplace, line: &str, processes: &mut Vec<(String, Child)>) -> Result<()> {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut shell = Command::new("sh");
    // Replaced by what it runs, so that ending it ends that.
    shell
        .arg("-c")
        .arg(format!("exec {line}"))
        .env("PATH", format!("{}:{path}", workplace.programs.display()));
    let mut child = shell
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("sh")?;
    let mut words = line.split_whitespace();
    if words.next() == Some("mkdir") {
        ensure!(child.wait()?.success(), "{line}");
        return Ok(());
    }
    let socket = words
        .skip_while(|word| *word != "--socket-path")
        .nth(1)
        .map(str::to_owned);
    let patience = Instant::now() + Duration::from_secs(60);
    while socket
        .as_ref()
        .is_some_and(|socket| !std::path::Path::new(socket).exists())
    {
        if Instant::now() > patience || child.try_wait()?.is_some() {
            let _ = child.kill();
            bail!("it does not listen: {line}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    processes.push((line.to_owned(), child));
    Ok(())
}

fn wait(child: &mut Child) -> Result<std::process::ExitStatus> {
    let patience = Instant::now() + TIME_LIMIT;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() > patience {
            child.kill()?;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
