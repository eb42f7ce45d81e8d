//! The memory of a guest that runs.

use std::fs;

use crate::domain::Domain;

/// Memory in KiB.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub(crate) struct Memory {
    /// What the guest has.
    pub(crate) actual: u64,
    /// What its monitor has of the host's memory, most of which is the guest's.
    pub(crate) rss: Option<u64>,
}

/// The memory of a guest. Without a balloon, the guest itself says nothing about it.
pub(crate) fn of(domain: &Domain) -> Memory {
    let state = domain.running.as_ref();
    let monitor = state.and_then(|state| state.process("vmm"));
    let monitor = monitor.filter(|monitor| monitor.is_alive());
    Memory {
        actual: domain.definition().memory.bytes() / 1024,
        rss: monitor.and_then(|monitor| resident(monitor.pid)),
    }
}

fn resident(process: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}
