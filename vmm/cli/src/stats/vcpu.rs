//! The virtual CPUs of a guest, each a thread of its monitor, and the CPUs of the host that they may run on.

use std::fs;

use anyhow::{Context, bail};
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::domain::Domain;
use crate::host;

/// A virtual CPU of a guest that runs.
#[derive(Clone, Debug)]
pub(crate) struct Vcpu {
    pub(crate) index: u32,
    thread: Pid,
    /// The host's CPU that it runs on, or ran on last.
    pub(crate) cpu: u32,
    /// The processor time that it has used, in nanoseconds.
    pub(crate) time: u64,
    /// How long it has waited for a CPU of the host, in nanoseconds.
    pub(crate) wait: u64,
}

/// The virtual CPUs of a guest, in their order; none where it does not run.
pub(crate) fn of(domain: &Domain) -> Vec<Vcpu> {
    let monitor = domain
        .running
        .as_ref()
        .and_then(|state| state.process("vmm"));
    let Some(monitor) = monitor.filter(|monitor| monitor.is_alive()) else {
        return Vec::new();
    };
    let threads = fs::read_dir(format!("/proc/{}/task", monitor.pid));
    let threads = threads.into_iter().flatten().flatten();
    let numbers = threads.filter_map(|thread| thread.file_name().to_str()?.parse().ok());
    let mut all: Vec<Vcpu> = numbers
        .filter_map(|thread| Vcpu::read(monitor.pid, thread))
        .collect();
    all.sort_by_key(|vcpu| vcpu.index);
    all
}

impl Vcpu {
    /// The virtual CPU that this thread is, if it is one.
    fn read(process: u32, thread: i32) -> Option<Self> {
        let read = |file| host::read(format!("/proc/{process}/task/{thread}/{file}")).ok();
        let index = read("comm")?.strip_prefix("vcpu")?.parse().ok()?;
        let stat = read("stat")?;
        // The fields of proc_pid_stat(5) after the name; the state is field 3, the processor field 39.
        let cpu = stat
            .rsplit_once(')')?
            .1
            .split_ascii_whitespace()
            .nth(39 - 3)?;
        let times = read("schedstat")?;
        let mut times = times.split(' ').map(|time| time.parse().ok());
        Some(Self {
            index,
            thread: Pid::from_raw(thread)?,
            cpu: cpu.parse().ok()?,
            time: times.next()??,
            wait: times.next()??,
        })
    }

    /// The host's CPUs that it may run on.
    pub(crate) fn affinity(&self) -> anyhow::Result<CpuList> {
        let set = sched_getaffinity(Some(self.thread))
            .with_context(|| format!("cannot read the affinity of vCPU {}", self.index))?;
        let cpus = 0..CpuSet::MAX_CPU;
        Ok(CpuList(cpus.filter(|&cpu| set.is_set(cpu)).collect()))
    }

    /// Has it run on these CPUs alone.
    pub(crate) fn pin(&self, cpus: &CpuList) -> anyhow::Result<()> {
        let mut set = CpuSet::new();
        cpus.0.iter().for_each(|&cpu| set.set(cpu));
        sched_setaffinity(Some(self.thread), &set)
            .with_context(|| format!("cannot pin vCPU {} to CPUs {cpus}", self.index))
    }
}

/// CPUs of the host, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CpuList(Vec<usize>);

/// The number of the host's CPUs.
pub(crate) fn host_cpus() -> usize {
    let present = host::read("/sys/devices/system/cpu/present").unwrap_or_default();
    let last = present.rsplit([',', '-']).next();
    let last: Option<usize> = last.and_then(|last| last.parse().ok());
    last.map_or(1, |last| last.saturating_add(1).min(CpuSet::MAX_CPU))
}

impl CpuList {
    /// All of so many CPUs.
    pub(crate) fn all(count: usize) -> Self {
        Self((0..count).collect())
    }

    /// Parses a list as virsh takes it: `0-3,^1,7`, or `r` for all.
    ///
    /// # Errors
    /// When it is none, is empty, or names a CPU that the host does not have.
    pub(crate) fn parse(text: &str, count: usize) -> anyhow::Result<Self> {
        if text == "r" {
            return Ok(Self::all(count));
        }
        let mut is_in = vec![false; count];
        for part in text.split(',') {
            let (wanted, range) = match part.strip_prefix('^') {
                Some(range) => (false, range),
                None => (true, part),
            };
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let number = |text: &str| text.trim().parse::<usize>().ok();
            let (Some(first), Some(last)) = (number(first), number(last)) else {
                bail!("Invalid cpulist '{text}': it is like 0-3,^1, or r for all CPUs");
            };
            if last >= count {
                bail!("CPU {last} in '{text}' does not exist: the host has {count}, from 0");
            }
            match is_in.get_mut(first..=last) {
                Some(range) => range.fill(wanted),
                None => bail!("Invalid cpulist '{text}': {range} ends before it begins"),
            }
        }
        let cpus = is_in.iter().enumerate().filter(|(_, is_in)| **is_in);
        let list = Self(cpus.map(|(cpu, _)| cpu).collect());
        match list.0.is_empty() {
            true => bail!("Invalid cpulist '{text}': it has no CPU"),
            false => Ok(list),
        }
    }

    /// A letter for each of so many CPUs, as virsh prints it.
    pub(crate) fn letters(&self, count: usize) -> String {
        let letter = |cpu| if self.0.contains(&cpu) { 'y' } else { '-' };
        (0..count).map(letter).collect()
    }

    /// The numbers of the CPUs.
    pub(crate) fn numbers(&self) -> &[usize] {
        &self.0
    }
}

impl std::fmt::Display for CpuList {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let runs = self.0.chunk_by(|cpu, next| cpu + 1 == *next);
        for (index, run) in runs.enumerate() {
            let comma = if index > 0 { "," } else { "" };
            match run {
                [first, .., last] => write!(f, "{comma}{first}-{last}")?,
                [only] => write!(f, "{comma}{only}")?,
                [] => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus_are_virshs() {
        for (text, shown, letters) in [
            ("0", "0", "y-------"),
            ("0-7", "0-7", "yyyyyyyy"),
            ("0-3,^1", "0,2-3", "y-yy----"),
            ("7,1,2", "1-2,7", "-yy----y"),
            ("r", "0-7", "yyyyyyyy"),
        ] {
            let list = CpuList::parse(text, 8).unwrap();
            assert_eq!(list.to_string(), shown, "{text}");
            assert_eq!(list.letters(8), letters, "{text}");
        }
        for wrong in ["", "a", "1-", "3-1", "0,^0", "8", "1-9", "-1", "1,,2", "^0"] {
            assert!(CpuList::parse(wrong, 8).is_err(), "{wrong}");
        }
        let most = "99999999999999999999999999";
        assert!(CpuList::parse(most, 8).is_err());
    }
}
