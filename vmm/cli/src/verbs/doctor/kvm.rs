//! KVM: its device, its modules, and whether guests run.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::fs::{Access, AtFlags, CWD, accessat, major, minor};

use super::finding::Finding;
use super::host::{self, Host};
use super::user::{self, User};
use crate::bounded;
use crate::program::Programs;

const DEVICE: &str = "/dev/kvm";
const MODULES: &str = "/sys/module";

/// How long the guest of a few instructions may take.
const PROBE: Duration = Duration::from_secs(5);

pub(crate) fn check(host: &Host) -> Vec<Finding> {
    let vendor = vendor_module();
    let user = &host.user;
    let mut found = vec![device(user, vendor), modules(vendor)];
    found.extend(probe());
    found.push(nested());
    found
}

/// The module that this processor takes.
fn vendor_module() -> &'static str {
    let flags = host::cpu_flags().unwrap_or_default();
    match flags.iter().any(|flag| flag == "svm") {
        true => "kvm_amd",
        false => "kvm_intel",
    }
}

fn device(user: &User, vendor: &str) -> Finding {
    const NUMBER: (u32, u32) = (10, 232);
    const MAKE: &str = "mknod -m 0660 /dev/kvm c 10 232";
    let metadata = match std::fs::metadata(DEVICE) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            // Containers often have a /dev of their own.
            let loaded = Path::new(MODULES).join("kvm").exists();
            return match loaded {
                true => Finding::fail(DEVICE, "not there, though KVM is loaded").run_as_root(MAKE),
                false => {
                    Finding::fail(DEVICE, "not there").run_as_root(format!("modprobe {vendor}"))
                }
            };
        }
        Err(error) => return Finding::fail(DEVICE, error.to_string()),
    };
    let number = (major(metadata.rdev()), minor(metadata.rdev()));
    if !metadata.file_type().is_char_device() || number != NUMBER {
        return Finding::fail(DEVICE, "something else has this name")
            .run_as_root(format!("rm {DEVICE} && {MAKE}"));
    }
    let mode = metadata.mode() & 0o777;
    match accessat(
        CWD,
        DEVICE,
        Access::READ_OK | Access::WRITE_OK,
        AtFlags::EACCESS,
    ) {
        Ok(()) => Finding::ok(DEVICE, format!("mode {mode:04o}")),
        Err(_) => not_permitted(user, mode, metadata.gid()),
    }
}

fn not_permitted(user: &User, mode: u32, group: u32) -> Finding {
    const GROUP_READ_WRITE: u32 = 0o060;
    let what = format!("mode {mode:04o}");
    if mode & GROUP_READ_WRITE == GROUP_READ_WRITE && group != 0 && !user.is_in(group) {
        return user::outside(DEVICE, &what, group, user);
    }
    let why = format!(
        "{what}, group {group}: {} may not read and write it",
        user.name
    );
    if user.is_root() {
        // Without CAP_DAC_OVERRIDE, root is a user as others.
        return Finding::fail(DEVICE, why).run(format!("chmod u+rw {DEVICE}"));
    }
    Finding::fail(DEVICE, format!("{why}; log in again after that")).run_as_root(format!(
        "groupadd -rf kvm && chgrp kvm {DEVICE} && chmod g+rw {DEVICE} && usermod -aG kvm {}",
        user.name
    ))
}

fn modules(vendor: &str) -> Finding {
    const CHECK: &str = "modules";
    let Ok(entries) = std::fs::read_dir(MODULES) else {
        return Finding::warn(CHECK, format!("{MODULES} cannot be read"))
            .run_as_root("mount -t sysfs sysfs /sys");
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut loaded: Vec<_> = names.filter(|name| name.starts_with("kvm_")).collect();
    loaded.sort();
    match loaded.is_empty() {
        true => Finding::fail(CHECK, "none of kvm_intel and kvm_amd is loaded")
            .run_as_root(format!("modprobe {vendor}")),
        false => Finding::ok(CHECK, loaded.join(", ")),
    }
}

/// Has the monitor run a guest of a few instructions, confined as it always is.
fn probe() -> Vec<Finding> {
    const RUNS: &str = "guests run";
    const LINUX: &str = "Linux guests run";
    let mut command = Command::new(Programs::find().vmm.path);
    command.arg("--probe");
    let ended = match bounded::run(command, PROBE) {
        Ok(ended) => ended,
        Err(error) => {
            let why = format!("bulkhead-vmm --probe: {error}");
            return vec![Finding::fail(RUNS, why).advise("see bulkhead-vmm's line under programs")];
        }
    };
    let line = ended.stdout.trim_end();
    match line.split_once(": ").unwrap_or((line, "")) {
        ("linux", _) => vec![Finding::ok(RUNS, ""), Finding::ok(LINUX, "")],
        ("no-linux", why) => vec![
            Finding::ok(RUNS, ""),
            Finding::fail(LINUX, why).advise(
                "KVM here emulates what kernels do; run on a host with hardware virtualization, see CPU",
            ),
        ],
        ("nothing", why) => vec![Finding::fail(RUNS, why).advise("see CPU, and dmesg | grep -i kvm")],
        _ => vec![refused(&ended.stderr, RUNS)],
    }
}

/// The monitor's error.
fn refused(stderr: &str, check: &'static str) -> Finding {
    let why = stderr.lines().find_map(|line| line.strip_prefix("error: "));
    let why = why.unwrap_or("bulkhead-vmm --probe ended without an answer");
    let advice = match why.contains("Operation not permitted") {
        true => "a container refuses the device: start it with --device /dev/kvm",
        false => "see /dev/kvm and modules above",
    };
    Finding::fail(check, why).advise(advice)
}

fn nested() -> Finding {
    const CHECK: &str = "nested virtualization";
    for module in ["kvm_intel", "kvm_amd"] {
        let Ok(value) = host::read(format!("{MODULES}/{module}/parameters/nested")) else {
            continue;
        };
        return match ["1", "Y", "y"].contains(&value.as_str()) {
            true => Finding::ok(CHECK, ""),
            false => Finding::warn(CHECK, "off: guests run no virtual machines of their own").run(
                format!("modprobe -r {module} && modprobe {module} nested=1"),
            ),
        };
    }
    Finding::warn(CHECK, "guests run no virtual machines of their own")
        .advise("it takes kvm_intel or kvm_amd, see CPU")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_monitors_reason_is_passed_on() {
        let stderr = "warning: no namespaces\nerror: cannot open /dev/kvm: gone\n";
        assert_eq!(refused(stderr, "x").detail(), "cannot open /dev/kvm: gone");
        assert!(refused("", "x").detail().contains("without an answer"));
    }
}
