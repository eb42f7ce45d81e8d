//! The programs that a guest consists of, and those of others that they start.

use super::finding::Finding;
use super::host::{self, Host};
use crate::program::Programs;

pub(crate) fn check(_: &Host) -> Vec<Finding> {
    let programs = Programs::find();
    let ours = [
        ("bulkhead-vmm", programs.vmm),
        ("bulkhead-block", programs.block),
        ("bulkhead-net", programs.net),
        ("bulkhead-net-helper", programs.net_helper),
    ];
    let missing: Vec<_> = ours
        .iter()
        .filter(|(_, program)| !program.path.is_file())
        .map(|(name, _)| *name)
        .collect();
    let own = match missing.as_slice() {
        [] => Finding::ok("Bulkhead's own", ""),
        missing => Finding::fail(
            "Bulkhead's own",
            format!(
                "{}: neither beside bulkhead nor on the path",
                missing.join(", ")
            ),
        )
        .advise("install all of Bulkhead into one folder"),
    };
    let dnsmasq = match host::program("dnsmasq") {
        Some(path) => Finding::ok("dnsmasq", path.display().to_string()),
        None => Finding::fail(
            "dnsmasq",
            "not installed: networks have no DHCP and no DNS, and those with dhcp=on do not start",
        )
        .run_as_root(host::install("dnsmasq-base")),
    };
    vec![own, dnsmasq]
}
