//! CPU extensions.

use super::finding::Finding;
use super::host::{self, Host};

const VIRTUALIZATION: &str = "hardware virtualization";
const PAGING: &str = "nested paging";

pub(crate) fn check(_: &Host) -> Vec<Finding> {
    let Ok(text) = host::read("/proc/cpuinfo") else {
        let why = "/proc/cpuinfo cannot be read";
        return vec![Finding::warn(VIRTUALIZATION, why).run_as_root("mount -t proc proc /proc")];
    };
    extensions(&text, kvm_is_there())
}

/// Whether something provides KVM, whatever the processor has.
fn kvm_is_there() -> bool {
    std::path::Path::new("/dev/kvm").exists()
}

fn extensions(cpuinfo: &str, kvm: bool) -> Vec<Finding> {
    let has = |field, flag| {
        let flags = host::cpu_field(cpuinfo, field).unwrap_or_default();
        flags.split_whitespace().any(|found| found == flag)
    };
    let is_guest = has("flags", "hypervisor");
    let (name, paging) = match (has("flags", "vmx"), has("flags", "svm")) {
        (true, _) => ("VT-x", has("vmx flags", "ept") || has("flags", "ept")),
        (_, true) => ("AMD-V", has("flags", "npt")),
        (false, false) => return vec![missing(is_guest, kvm)],
    };
    let second = match paging {
        true => Finding::ok(PAGING, ""),
        false => Finding::warn(PAGING, "KVM manages guests' page tables in software: slow")
            .advise(enable(is_guest)),
    };
    vec![Finding::ok(VIRTUALIZATION, name), second]
}

fn missing(is_guest: bool, kvm: bool) -> Finding {
    const NEITHER: &str = "neither VT-x nor AMD-V";
    let finding = match kvm {
        true => Finding::warn(
            VIRTUALIZATION,
            format!("{NEITHER}; /dev/kvm is there all the same"),
        ),
        false => Finding::fail(VIRTUALIZATION, NEITHER),
    };
    finding.advise(enable(is_guest))
}

fn enable(is_guest: bool) -> &'static str {
    match is_guest {
        true => {
            "this host is a guest itself: on its own host, enable nested virtualization \
             (modprobe kvm_intel nested=1, or kvm_amd) and give it the host's CPU model"
        }
        false => "turn on virtualization (VT-x, AMD-V, SVM) in the firmware's settings",
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Status::{Fail, Ok, Warn};
    use super::*;

    fn found(cpuinfo: &str, kvm: bool) -> Vec<super::super::finding::Status> {
        let found = extensions(cpuinfo, kvm);
        found.iter().map(Finding::status).collect()
    }

    #[test]
    fn each_vendor_has_its_own_flags() {
        assert_eq!(
            found("flags : fpu vmx\nvmx flags : vnmi ept\n", true),
            [Ok, Ok]
        );
        assert_eq!(found("flags : fpu vmx ept\n", true), [Ok, Ok]);
        assert_eq!(
            found("flags : fpu vmx\nvmx flags : vnmi\n", true),
            [Ok, Warn]
        );
        assert_eq!(found("flags : fpu svm npt\n", false), [Ok, Ok]);
        assert_eq!(found("flags : fpu svm\n", false), [Ok, Warn]);
    }

    #[test]
    fn without_either_it_matters_whether_there_is_kvm() {
        assert_eq!(found("flags : fpu\n", false), [Fail]);
        assert_eq!(found("flags : fpu\n", true), [Warn]);
        assert_eq!(found("", false), [Fail]);
    }
}
