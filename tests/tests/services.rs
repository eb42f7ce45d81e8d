//! Guests as systemd's services: how tight the units are, and a host with systemd as its first process that runs them.
#![allow(clippy::unwrap_used, clippy::panic)] // a test that cannot go on has failed
#![allow(clippy::disallowed_macros)] // it prints the figures

#[path = "services/host.rs"]
mod host;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use bulkhead_tests::guest::kvm_is_usable;
use bulkhead_tests::workplace::Workplace;

use host::{Host, units};

const BLOCK: &str = "bulkhead-block@a\\x2db-vda.service";
const NET: &str = "bulkhead-net@a\\x2db-net0.service";
const HELPER: &str = "bulkhead-net-helper.service";
const MONITOR: &str = "bulkhead-vmm@a\\x2db.service";
const GUEST: &str = "bulkhead-guest@a\\x2db.target";

/// The units in a folder, with the programs where they were built.
fn units_of_built_programs(folder: &Path) -> Vec<PathBuf> {
    let programs = Workplace::find().unwrap().programs;
    let mut paths = Vec::new();
    for entry in fs::read_dir(units().join("system")).unwrap() {
        let unit = entry.unwrap().path();
        let text = fs::read_to_string(&unit).unwrap();
        let text = text.replace(
            "/usr/bin/bulkhead",
            programs.join("bulkhead").to_str().unwrap(),
        );
        let path = folder.join(unit.file_name().unwrap());
        fs::write(&path, text).unwrap();
        paths.push(path);
    }
    paths.sort();
    paths
}

#[test]
fn systemd_understands_every_unit() {
    let folder = tempfile::tempdir().unwrap();
    let units = units_of_built_programs(folder.path());
    let mut verify = Command::new("systemd-analyze");
    verify
        .args(["verify", "--man=no", "--recursive-errors=no"])
        .args(&units);
    let output = verify
        .output()
        .expect("systemd is missing: cargo xtask setup");
    let lines = String::from_utf8(output.stderr).unwrap();
    let ours: Vec<_> = lines
        .lines()
        .filter(|line| line.contains("bulkhead"))
        .collect();
    assert!(ours.is_empty(), "{ours:#?}");
    assert!(output.status.success(), "{lines}");
}

#[test]
fn the_sandboxes_are_as_tight_as_they_were() {
    // In tenths, as systemd-analyze takes a threshold: 15 is 1.5.
    for (unit, most) in [
        ("bulkhead-vmm@.service", 15),
        ("bulkhead-block@.service", 15),
        ("bulkhead-net@.service", 15),
        ("bulkhead-net-helper.service", 30),
    ] {
        let output = Command::new("systemd-analyze")
            .args(["security", "--no-pager", "--offline=true"])
            .arg(format!("--threshold={most}"))
            .arg(units().join("system").join(unit))
            .output()
            .expect("systemd is missing: cargo xtask setup");
        let text = String::from_utf8(output.stdout).unwrap();
        let figure = text.lines().last().unwrap_or_default();
        println!("{figure} (at most {}.{})", most / 10, most % 10);
        assert!(output.status.success(), "{text}");
        assert!(figure.contains("Overall exposure level"), "{text}");
    }
}

/// A line of a definition for a disk that bulkhead-block's group may write.
fn disk(host: &Host, name: &str) -> String {
    let path = format!("/var/lib/bulkhead/images/my disk/{name}.qcow2");
    host.succeeds(&format!(
        "mkdir -p '/var/lib/bulkhead/images/my disk'; chgrp bulkhead-block '/var/lib/bulkhead/images/my disk'
         chmod 2770 '/var/lib/bulkhead/images/my disk'
         image-tool create -q -f qcow2 '{path}' 64M && chmod 660 '{path}'"
    ));
    format!("[[disks]]\npath = \"{path}\"\nformat = \"qcow2\"\n")
}

fn define(host: &Host, name: &str, cmdline: &str, more: &str) {
    let text = format!(
        "name = \"{name}\"\nkernel = \"/usr/lib/test-kernel\"\ncmdline = \"{cmdline}\"\nmemory = \"64M\"\n{more}"
    );
    host.succeeds(&format!(
        "bulkhead define - <<'END'\n{text}\nEND\nsystemctl daemon-reload"
    ));
}

/// A guest's serial port, by which it takes commands.
struct Console(BufReader<UnixStream>);

impl Console {
    fn of(host: &Host, guest: &str) -> Self {
        let path = host.path(&format!("/run/bulkhead-units/{guest}/vmm/console.sock"));
        Self(BufReader::new(UnixStream::connect(path).unwrap()))
    }

    fn send(&mut self, line: &str) {
        writeln!(self.0.get_mut(), "{line}").unwrap();
    }

    fn wait_for(&mut self, words: &str) {
        let mut line = String::new();
        while !line.contains(words) {
            line.clear();
            assert_ne!(self.0.read_line(&mut line).unwrap(), 0, "before {words:?}");
        }
    }
}

/// The words of the command line of a unit's main process.
fn command_line(host: &Host, unit: &str) -> Vec<String> {
    let pid = host.property(unit, "MainPID");
    let bytes = host.succeeds(&format!("cat /proc/{pid}/cmdline"));
    let words = bytes.trim_end_matches('\0').split('\0');
    words.map(str::to_owned).collect()
}

#[test]
fn systemd_runs_a_guest_restarts_its_processes_and_shuts_it_down() {
    const NAME: &str = "systemd_runs_a_guest_restarts_its_processes_and_shuts_it_down";
    if !rustix::process::geteuid().is_root() || !kvm_is_usable(NAME) {
        println!("{NAME}: skipped: it needs root and /dev/kvm");
        return;
    }
    let host = Host::boot();
    let more = disk(&host, "d");
    define(
        &host,
        "a-b",
        "test=button",
        &format!(
            "autostart = true\n{more}[[nets]]\nnetwork = \"default\"\nmac = \"52:54:00:00:00:01\"\n"
        ),
    );

    // As at the host's start.
    host.succeeds("systemctl start bulkhead-guests.service");
    host.succeeds(&format!("systemctl start '{GUEST}'"));

    each_process_is_the_plans_and_has_no_privilege(&host);
    let refused = host.fails("bulkhead start a-b");
    assert!(refused.contains("is run by systemd"), "{refused}");
    let monitor = host.property(MONITOR, "MainPID");
    for unit in [BLOCK, NET] {
        host.succeeds(&format!("systemctl restart '{unit}'"));
    }
    for unit in [BLOCK, NET, HELPER] {
        let before = host.property(unit, "MainPID");
        host.succeeds(&format!("systemctl kill --signal=KILL '{unit}'"));
        host.until(unit, |now| now.is_active && now.pid != before);
    }
    assert_eq!(host.property(MONITOR, "MainPID"), monitor);

    let mut console = Console::of(&host, "a-b");
    console.send("enable");
    console.wait_for("button enable");
    console.send("wait");
    // The power button is pressed, and the guest that sees it powers off.
    let stop = host.start(&format!("systemctl stop '{GUEST}' '{MONITOR}'"));
    console.wait_for("button wait");
    console.send("end");
    host.ended(stop);
    assert_eq!(host.property(MONITOR, "Result"), "success");
    assert_eq!(host.property(MONITOR, "ExecMainStatus"), "0");
    for unit in [BLOCK, NET, GUEST] {
        host.until(unit, |now| !now.is_active);
    }
    host.succeeds("test -z \"$(find /run/bulkhead-units -type s)\"");

    what_a_command_runs_is_not_started(&host);
}

fn each_process_is_the_plans_and_has_no_privilege(host: &Host) {
    assert_eq!(
        command_line(host, BLOCK),
        [
            "/usr/bin/bulkhead-block",
            "--fd",
            "3",
            "--blk-file",
            "/var/lib/bulkhead/images/my disk/d.qcow2",
            "--format",
            "qcow2"
        ]
    );
    assert_eq!(
        command_line(host, NET),
        [
            "/usr/bin/bulkhead-net",
            "--fd",
            "3",
            "--network",
            "default",
            "--helper-socket",
            "/run/bulkhead/net-helper.sock",
            "--mac",
            "52:54:00:00:00:01"
        ]
    );
    let monitor = command_line(host, MONITOR).join(" ");
    let ends = "--serial socket=/run/bulkhead-units/a-b/vmm/console.sock --api-socket path=/run/bulkhead-units/a-b/vmm/api.sock";
    assert!(
        monitor.starts_with(
            "/usr/bin/bulkhead-vmm --kernel /usr/lib/test-kernel --cmdline test=button "
        ),
        "{monitor}"
    );
    assert!(monitor.ends_with(ends), "{monitor}");
    for (unit, user) in [
        (BLOCK, "bulkhead-block"),
        (NET, "bulkhead-net"),
        (MONITOR, "bulkhead-vmm"),
    ] {
        let pid = host.property(unit, "MainPID");
        assert_eq!(
            host.succeeds(&format!("stat -c %U /proc/{pid}")).trim(),
            user
        );
        let status = host.succeeds(&format!("cat /proc/{pid}/status"));
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert!(
                status.contains(&format!("{set}:\t0000000000000000\n")),
                "{unit}: {status}"
            );
        }
        // Its own confinement holds as well: nothing is in its root folder.
        let root = host.succeeds(&format!("ls /proc/{pid}/root"));
        assert!(!root.contains("usr"), "{unit}: {root}");
    }
}

fn what_a_command_runs_is_not_started(host: &Host) {
    host.succeeds("bulkhead start a-b");
    let refused = host.fails(&format!("systemctl start '{GUEST}'"));
    assert!(refused.contains("dependency job"), "{refused}");
    let journal = host.succeeds(&format!("journalctl --no-pager -u '{MONITOR}'"));
    assert!(
        journal.contains("guest 'a-b' is running already"),
        "{journal}"
    );
    host.succeeds("bulkhead destroy a-b");
}
