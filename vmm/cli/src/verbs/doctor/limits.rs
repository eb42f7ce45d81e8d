//! The limits that a guest's processes inherit.

use rustix::process::{Resource, Rlimit, getrlimit};

use super::finding::Finding;
use super::host::Host;

/// A limit, and how much of it guests need.
struct Needed {
    check: &'static str,
    resource: Resource,
    /// The shell's option, and the size of its unit.
    option: &'static str,
    unit: u64,
    /// Below this not even a small guest starts.
    least: u64,
    /// Below this only small ones do.
    enough: u64,
    why: &'static str,
}

const UNLIMITED: u64 = u64::MAX;

const ALL: [Needed; 5] = [
    Needed {
        check: "open files (nofile)",
        resource: Resource::Nofile,
        option: "n",
        unit: 1,
        // A monitor with one disk has 30.
        least: 32,
        enough: 1024,
        why: "each queue of each device takes descriptors",
    },
    Needed {
        check: "locked memory (memlock)",
        resource: Resource::Memlock,
        option: "l",
        unit: 1024,
        least: 0,
        // Before Linux 5.12, the rings of io_uring count.
        enough: 64 << 10,
        why: "rings of io_uring count, on older kernels",
    },
    Needed {
        check: "processes (nproc)",
        resource: Resource::Nproc,
        option: "u",
        unit: 1,
        least: 64,
        enough: 1024,
        why: "a guest is five processes and some thirty threads, all of which count for the user",
    },
    Needed {
        check: "file size (fsize)",
        resource: Resource::Fsize,
        option: "f",
        unit: 1024,
        least: 1 << 30,
        enough: UNLIMITED,
        why: "writes beyond it in disk images fail, and guest memory is a file",
    },
    Needed {
        check: "address space (as)",
        resource: Resource::As,
        option: "v",
        unit: 1024,
        least: 1 << 30,
        enough: UNLIMITED,
        why: "guest memory is mapped by the monitor and by each backend",
    },
];

pub(crate) fn check(host: &Host) -> Vec<Finding> {
    let is_root = host.user.is_root();
    ALL.iter()
        // Root's processes are not counted.
        .filter(|needed| !(is_root && needed.resource == Resource::Nproc))
        .map(|needed| judge(needed, getrlimit(needed.resource)))
        .collect()
}

fn judge(needed: &Needed, limit: Rlimit) -> Finding {
    let soft = limit.current.unwrap_or(UNLIMITED);
    let hard = limit.maximum.unwrap_or(UNLIMITED);
    let detail = match needed.unit {
        1 => shown(soft, 1),
        _ if soft == UNLIMITED => shown(soft, 1),
        unit => format!("{} KiB", soft / unit),
    };
    if soft >= needed.enough {
        return Finding::ok(needed.check, detail);
    }
    let detail = format!("{detail}: {}", needed.why);
    let finding = match soft < needed.least {
        true => Finding::fail(needed.check, detail),
        false => Finding::warn(needed.check, detail),
    };
    let wanted = shown(needed.enough, needed.unit);
    let option = needed.option;
    match needed.enough <= hard {
        true => finding.run(format!("ulimit -S -{option} {wanted}")),
        // Only root exceeds the hard limit, of this shell, too.
        false => {
            let (name, bytes) = (name(needed.check), shown(needed.enough, 1));
            finding.run_as_root(format!("prlimit --pid $$ --{name}={bytes}:{bytes}"))
        }
    }
}

/// The name in parentheses, which is that of prlimit(1), limits.conf(5) and systemd.
fn name(check: &str) -> &str {
    let (_, name) = check.split_once('(').unwrap_or(("", check));
    name.trim_end_matches(')')
}

fn shown(value: u64, unit: u64) -> String {
    match value {
        UNLIMITED => "unlimited".to_owned(),
        value => value.div_euclid(unit).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Status;
    use super::*;

    fn files(current: u64, maximum: u64) -> Finding {
        let limit = Rlimit {
            current: Some(current),
            maximum: Some(maximum),
        };
        judge(&ALL[0], limit)
    }

    #[test]
    fn a_soft_limit_is_raised_by_the_shell_and_a_hard_one_by_root() {
        assert_eq!(files(1024, 1024).status(), Status::Ok);
        let soft = files(24, 4096);
        assert_eq!(soft.status(), Status::Fail);
        assert_eq!(soft.mend(true), Some(("run", "ulimit -S -n 1024")));
        let hard = files(512, 512);
        assert_eq!(hard.status(), Status::Warn);
        let command = "prlimit --pid $$ --nofile=1024:1024";
        assert_eq!(hard.mend(true), Some(("run", command)));
    }
}
