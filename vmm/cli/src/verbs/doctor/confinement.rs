//! What keeps a program that is taken over away from the host.

use std::path::Path;

use bulkhead_process::confine::{self, Part};

use super::finding::Finding;
use super::host::{self, Host};

pub(crate) fn check(host: &Host) -> Vec<Finding> {
    let mut found = vec![landlock()];
    match &host.refused {
        Ok(refused) => {
            let why = |part| {
                let mut all = refused.iter().filter(|refused| refused.part == part);
                all.next().map(|refused| refused.why.as_str())
            };
            found.push(seccomp(why(Part::Seccomp)));
            found.push(namespaces(why(Part::Namespaces), host.user.is_root()));
            if host.user.is_root() {
                found.push(processes(why(Part::Processes)));
            }
        }
        Err(error) => found.push(
            Finding::fail("system calls and namespaces", error.clone())
                .advise("see the limits, and dmesg"),
        ),
    }
    found.push(cgroups());
    found
}

fn landlock() -> Finding {
    const CHECK: &str = "Landlock";
    /// The version that keeps signals and abstract sockets from other processes.
    const SCOPES: u32 = 6;
    match confine::landlock_abi() {
        Some(version) if version >= SCOPES => Finding::ok(CHECK, format!("ABI {version}")),
        Some(version) => Finding::warn(
            CHECK,
            format!("ABI {version}: signals are kept in by seccomp alone"),
        )
        .advise("boot Linux 6.12 or later"),
        None => {
            let why = "before it serves, a program that is taken over opens what its user may";
            let warning = Finding::warn(CHECK, format!("none: {why}"));
            match host::read("/sys/kernel/security/lsm") {
                Ok(modules) if !modules.split(',').any(|module| module == "landlock") => warning
                    .advise(format!(
                        "boot with lsm=landlock,{modules} on the kernel's command line"
                    )),
                _ => warning.advise(
                    "boot Linux 5.13 or later with CONFIG_SECURITY_LANDLOCK and landlock in lsm=; \
                     a container must not refuse landlock_create_ruleset(2)",
                ),
            }
        }
    }
}

fn seccomp(refused: Option<&str>) -> Finding {
    const CHECK: &str = "seccomp";
    match refused {
        None => Finding::ok(CHECK, ""),
        Some(why) => Finding::fail(CHECK, format!("{why}: no program starts"))
            .advise("boot a kernel with CONFIG_SECCOMP_FILTER"),
    }
}

/// A setting of the kernel by which user namespaces are refused.
struct Setting {
    name: &'static str,
    refuses: fn(u64) -> bool,
    mended: u64,
}

const SETTINGS: [Setting; 3] = [
    Setting {
        name: "user.max_user_namespaces",
        refuses: |most| most == 0,
        mended: 15_000,
    },
    Setting {
        name: "kernel.unprivileged_userns_clone",
        refuses: |on| on == 0,
        mended: 1,
    },
    Setting {
        name: "kernel.apparmor_restrict_unprivileged_userns",
        refuses: |on| on != 0,
        mended: 0,
    },
];

fn namespaces(refused: Option<&str>, is_root: bool) -> Finding {
    let check = match is_root {
        true => "mount, network namespaces",
        false => "user namespaces",
    };
    let Some(why) = refused else {
        return Finding::ok(check, "");
    };
    let why =
        format!("{why}: seccomp alone keeps a program that is taken over from files and sockets");
    let warning = Finding::warn(check, why);
    let set = SETTINGS.iter().find(|setting| {
        let value = host::number(Path::new("/proc/sys").join(setting.name.replace('.', "/")));
        !is_root && value.is_some_and(setting.refuses)
    });
    match set {
        Some(Setting { name, mended, .. }) => warning.run_as_root(format!("sysctl {name}={mended}")),
        None => warning.advise("a container's profile refuses unshare(2), mount(2) or pivot_root(2): start it with another"),
    }
}

fn processes(refused: Option<&str>) -> Finding {
    const CHECK: &str = "process namespaces";
    match refused {
        None => Finding::ok(CHECK, ""),
        Some(why) => Finding::warn(
            CHECK,
            format!("{why}: a program that is taken over sees the host's process numbers"),
        )
        .advise("a container's profile refuses unshare(2): start it with another"),
    }
}

fn cgroups() -> Finding {
    const CHECK: &str = "cgroup v2";
    const FOLDER: &str = "/sys/fs/cgroup";
    const NEEDED: [&str; 3] = ["cpu", "memory", "pids"];
    let Ok(controllers) = host::read(format!("{FOLDER}/cgroup.controllers")) else {
        let old = Path::new(FOLDER).join("memory").exists();
        return match old {
            true => Finding::warn(
                CHECK,
                "version 1: limits of services do not hold for memory",
            )
            .advise("boot with systemd.unified_cgroup_hierarchy=1 on the kernel's command line"),
            false => Finding::warn(
                CHECK,
                format!("not mounted at {FOLDER}: no limits for guests"),
            )
            .run_as_root(format!("mount -t cgroup2 cgroup2 {FOLDER}")),
        };
    };
    let has = |needed: &&str| controllers.split_whitespace().any(|name| name == *needed);
    let missing: Vec<_> = NEEDED.into_iter().filter(|needed| !has(needed)).collect();
    match missing.as_slice() {
        [] => Finding::ok(CHECK, controllers),
        missing => Finding::warn(CHECK, format!("without {}: no limits of that for guests", missing.join(", "))).advise(
            "do not mount these controllers as version 1, and delegate them to this container or user (Delegate=yes)",
        ),
    }
}
