//! Clocks, which guests use through KVM.

use super::finding::Finding;
use super::host::{self, Host};

const SOURCE: &str = "clock source";
const TSC: &str = "TSC";
const FOLDER: &str = "/sys/devices/system/clocksource/clocksource0";

pub(crate) fn check(_: &Host) -> Vec<Finding> {
    let named = |name| host::read(format!("{FOLDER}/{name}")).ok();
    vec![
        source(
            named("current_clocksource").as_deref(),
            named("available_clocksource").as_deref(),
        ),
        tsc(host::cpu_flags().as_deref()),
    ]
}

fn source(current: Option<&str>, available: Option<&str>) -> Finding {
    /// Those that are read without a system call, on the host and in guests.
    const FAST: [&str; 3] = ["tsc", "kvm-clock", "hyperv_clocksource_tsc_page"];
    let Some(current) = current.filter(|current| !current.is_empty()) else {
        return Finding::warn(SOURCE, format!("{FOLDER} cannot be read"))
            .run_as_root("mount -t sysfs sysfs /sys");
    };
    if FAST.contains(&current) {
        return Finding::ok(SOURCE, current);
    }
    let slow = Finding::warn(
        SOURCE,
        format!("{current}: reading it is slow, and guests have no stable clock from KVM"),
    );
    let available = available.unwrap_or_default();
    match available
        .split_whitespace()
        .find(|name| FAST.contains(name))
    {
        Some(fast) => slow.run_as_root(format!("echo {fast} >{FOLDER}/current_clocksource")),
        None => slow.advise(
            "the kernel has found the TSC unstable (dmesg | grep -i tsc): update the firmware",
        ),
    }
}

fn tsc(flags: Option<&[String]>) -> Finding {
    let Some(flags) = flags else {
        return Finding::warn(TSC, "/proc/cpuinfo cannot be read")
            .run_as_root("mount -t proc proc /proc");
    };
    let needed = ["constant_tsc", "nonstop_tsc"];
    let missing: Vec<_> = needed
        .into_iter()
        .filter(|needed| !flags.iter().any(|flag| flag == needed))
        .collect();
    match missing.as_slice() {
        [] => Finding::ok(TSC, "its rate is constant, also in idle states"),
        missing => Finding::warn(TSC, format!("the processor has no {}: guests' clocks drift", missing.join(" and no ")))
            .advise("run an NTP client in guests; where this host is a guest itself, give it the host's CPU model"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Status;
    use super::*;

    #[test]
    fn a_slow_source_is_replaced_where_a_fast_one_is_there() {
        assert_eq!(source(Some("tsc"), None).status(), Status::Ok);
        let mended = source(Some("hpet"), Some("hpet tsc acpi_pm"));
        let (label, command) = mended.mend(true).unwrap();
        assert_eq!(label, "run");
        assert!(command.starts_with("echo tsc >/sys/"), "{command}");
        let unmended = source(Some("hpet"), Some("hpet acpi_pm"));
        assert_eq!(unmended.mend(true).unwrap().0, "do");
        assert_eq!(source(None, None).status(), Status::Warn);
    }

    #[test]
    fn both_flags_are_needed() {
        let flags = ["constant_tsc", "nonstop_tsc"].map(str::to_owned);
        assert_eq!(tsc(Some(&flags)).status(), Status::Ok);
        assert_eq!(tsc(Some(&flags[1..])).status(), Status::Warn);
        assert_eq!(tsc(None).status(), Status::Warn);
    }
}
