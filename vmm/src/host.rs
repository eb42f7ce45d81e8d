//! Facts about the host.

use anyhow::Context;

/// The host's memory in bytes.
pub(crate) fn memory() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    total(&text).context("/proc/meminfo has no MemTotal")
}

fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_is_in_kib() {
        let text = "MemTotal:       24678912 kB\nMemFree:        1 kB\n";
        assert_eq!(total(text), Some(24_678_912 * 1024));
        assert_eq!(total("MemFree: 1 kB\n"), None);
        assert!(memory().unwrap() > 1 << 20);
    }
}
