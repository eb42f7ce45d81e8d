//! Processes as /proc shows them: one that is the same as before, and those that run a given command.

use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;

use rustix::process::{Pid, geteuid};
use serde::{Deserialize, Serialize};

use crate::guest::Process;

/// A process, told from a later one with the same number by its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessId {
    pub(crate) pid: u32,
    /// The time of its start, in clock ticks since the host's.
    start: u64,
}

impl ProcessId {
    /// This process.
    pub(crate) fn own() -> Self {
        let pid = std::process::id();
        Self::of(pid).unwrap_or(Self { pid, start: 0 })
    }

    /// The process that has this number now. Returns `None` when there is none.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let start = stat(pid)?.start;
        Some(Self { pid, start })
    }

    /// The processor time that it has used, in seconds.
    pub(crate) fn cpu_time(self) -> Option<f64> {
        let total = self.times()?.total();
        #[allow(clippy::cast_precision_loss, reason = "it is shown with one decimal")]
        Some(total as f64 / 1e9)
    }

    /// The processor time that it has used.
    pub(crate) fn times(self) -> Option<Times> {
        let stat = stat(self.pid).filter(|stat| stat.start == self.start)?;
        let tick = 1_000_000_000 / rustix::param::clock_ticks_per_second();
        Some(Times {
            user: stat.user.saturating_mul(tick),
            system: stat.system.saturating_mul(tick),
        })
    }

    /// Whether it runs still.
    pub(crate) fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }
}

/// Processor time in nanoseconds. That of a guest's own code counts as user time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Times {
    pub(crate) user: u64,
    pub(crate) system: u64,
}

impl Times {
    pub(crate) fn total(self) -> u64 {
        self.user.saturating_add(self.system)
    }
}

impl std::ops::Add for Times {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            user: self.user.saturating_add(other.user),
            system: self.system.saturating_add(other.system),
        }
    }
}

/// What is needed of `/proc/PID/stat`.
struct Stat {
    parent: u32,
    /// Times in clock ticks.
    user: u64,
    system: u64,
    start: u64,
}

fn stat(pid: u32) -> Option<Stat> {
    let mut text = [0; 1024];
    let length = fs::File::open(format!("/proc/{pid}/stat"))
        .ok()?
        .read(&mut text)
        .ok()?;
    let text = std::str::from_utf8(text.get(..length)?).ok()?;
    // The name, in parentheses, may have spaces and parentheses itself.
    let rest = text.rsplit_once(')')?.1;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?;
    // A zombie has ended.
    if state == "Z" {
        return None;
    }
    let parent = fields.next()?.parse().ok()?;
    // The fields of proc_pid_stat(5); the parent is field 4.
    let user = fields.nth(14 - 5)?.parse().ok()?;
    let system = fields.next()?.parse().ok()?;
    let start = fields.nth(22 - 16)?.parse().ok()?;
    Some(Stat {
        parent,
        user,
        system,
        start,
    })
}

/// The process of this user that runs the command of `process`. The programs' brokers, which have the same command,
/// are children of it.
pub(super) fn find(process: &Process) -> Option<Pid> {
    let wanted = command_line(process);
    let user = geteuid().as_raw();
    let entries = fs::read_dir("/proc").ok()?.flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let same: Vec<u32> = numbers
        .filter(|pid| {
            let is_own = fs::metadata(format!("/proc/{pid}")).is_ok_and(|it| it.uid() == user);
            is_own && fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line == wanted)
        })
        .collect();
    let is_first = |pid: &&u32| stat(**pid).is_some_and(|stat| !same.contains(&stat.parent));
    let pid = i32::try_from(*same.iter().find(is_first)?).ok()?;
    Pid::from_raw(pid)
}

/// The content of `/proc/PID/cmdline`.
fn command_line(process: &Process) -> Vec<u8> {
    let mut line = process.program.path.as_os_str().as_bytes().to_vec();
    line.push(0);
    for argument in &process.args {
        line.extend_from_slice(argument.as_bytes());
        line.push(0);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_alive_until_it_ends() {
        assert!(ProcessId::own().is_alive());
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let id = ProcessId::of(child.id()).unwrap();
        assert!(id.is_alive());
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(!id.is_alive());
        let other = ProcessId {
            start: 1,
            ..ProcessId::own()
        };
        assert!(!other.is_alive());
    }
}
