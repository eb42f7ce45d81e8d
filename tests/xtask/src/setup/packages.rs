//! Debian packages: finds the missing ones and installs them by name. The one step that needs root.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::run;

/// What the tests and the nested bench run, whatever version Debian has.
const PACKAGES: &[&str] = &[
    "acl",
    "acpica-tools",
    "attr",
    "btrfs-progs",
    "busybox-static",
    "cpio",
    "curl",
    "dnsmasq-base",
    "e2fsprogs",
    "g++",
    "gcc",
    "iproute2",
    "iputils-ping",
    "kmod",
    "lz4",
    "nftables",
    "qemu-user",
    "socat",
    "strace",
    "systemd",
    "xfsprogs",
];

/// The peers that `image-tool` and the backends are compared with, which must be this version or newer.
const QEMU_PACKAGES: [&str; 2] = ["qemu-utils", "qemu-system-x86"];
const QEMU_VERSION: &str = "1:10.0";

/// Where Debian 12 has that version.
const BACKPORTS: &str = "bookworm-backports";
const BACKPORTS_SOURCE: &str = "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] \
    http://deb.debian.org/debian bookworm-backports main";
const BACKPORTS_FILE: &str = "/etc/apt/sources.list.d/bulkhead-backports.list";

/// Installs what is missing, as root or through sudo. Without either, prints the command to run.
pub(crate) fn install() -> Result<()> {
    let mut missing = Vec::new();
    for &package in PACKAGES {
        if installed(package)?.is_none() {
            missing.push(package);
        }
    }
    let mut qemu = Vec::new();
    for package in QEMU_PACKAGES {
        let version = installed(package)?;
        if !version.is_some_and(|version| at_least(&version, QEMU_VERSION)) {
            qemu.push(package);
        }
    }
    // Without the lists of packages, the kernel cannot be downloaded either.
    let lists_missing = !known("linux-image-cloud-amd64")?;
    if missing.is_empty() && qemu.is_empty() && !lists_missing {
        return Ok(());
    }
    let all = [&missing[..], &qemu].concat();
    println!("setup: installing Debian packages: {}", all.join(" "));
    as_root(&script(&missing, &qemu)?)
}

/// One line of shell that installs them.
fn script(missing: &[&str], qemu: &[&str]) -> Result<String> {
    let mut steps = Vec::new();
    let backports = !qemu.is_empty() && codename()? == "bookworm";
    if backports && !run::output(Command::new("apt-cache").arg("policy"))?.contains(BACKPORTS) {
        steps.push(format!("echo '{BACKPORTS_SOURCE}' >{BACKPORTS_FILE}"));
    }
    steps.push("apt-get update -q".to_owned());
    let install = "DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends";
    if !missing.is_empty() {
        steps.push(format!("{install} {}", missing.join(" ")));
    }
    if !qemu.is_empty() {
        let suite = if backports {
            format!(" -t {BACKPORTS}")
        } else {
            String::new()
        };
        steps.push(format!("{install}{suite} {}", qemu.join(" ")));
    }
    Ok(steps.join(" && "))
}

fn as_root(script: &str) -> Result<()> {
    let is_root = run::output(Command::new("id").arg("-u"))?.trim() == "0";
    let has_sudo = run::quiet(Command::new("sh").args(["-c", "command -v sudo"]))?
        .status
        .success();
    if !is_root && !has_sudo {
        bail!(
            "packages are missing, and installing them needs root; run this as root:\n  {script}"
        );
    }
    let mut command = Command::new(if is_root { "sh" } else { "sudo" });
    if !is_root {
        command.arg("sh");
    }
    run::through(command.args(["-c", script]))
}

/// The version of a package that is installed.
fn installed(package: &str) -> Result<Option<String>> {
    let mut query = Command::new("dpkg-query");
    let output = run::quiet(query.args(["-W", "-f", "${db:Status-Status} ${Version}", package]))?;
    Ok(String::from_utf8_lossy(&output.stdout)
        .strip_prefix("installed ")
        .map(str::to_owned))
}

/// Whether apt's lists have a package of that name.
fn known(package: &str) -> Result<bool> {
    Ok(
        run::quiet(Command::new("apt-cache").args(["show", "--quiet=2", package]))?
            .status
            .success(),
    )
}

fn at_least(version: &str, least: &str) -> bool {
    let compared = Command::new("dpkg")
        .args(["--compare-versions", version, "ge", least])
        .status();
    compared.is_ok_and(|status| status.success())
}

/// This Debian's code name.
fn codename() -> Result<String> {
    let path = Path::new("/etc/os-release");
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let name = text
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    Ok(name.unwrap_or_default().trim_matches('"').to_owned())
}
