//! The machine itself, seen by a bare-metal guest on this machine's KVM.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

use std::ffi::OsString;

use bulkhead_tests::guest::{Machine, kvm_is_usable};

fn words(text: &str) -> Vec<OsString> {
    text.split_whitespace().map(OsString::from).collect()
}

#[test]
fn powering_off_ends_the_monitor_with_status_0() {
    if kvm_is_usable("powering_off_ends_the_monitor_with_status_0") {
        Machine::start("test=start", &[]).expect_success();
    }
}

#[test]
fn a_reset_ends_the_monitor_with_status_3() {
    if !kvm_is_usable("a_reset_ends_the_monitor_with_status_3") {
        return;
    }
    let mut machine = Machine::start("test=reset", &[]);
    machine.expect("start");
    let (status, _) = machine.wait();
    assert_eq!(status.code(), Some(3));
}

#[test]
fn a_triple_fault_ends_the_monitor_with_status_4_and_one_error_line() {
    if !kvm_is_usable("a_triple_fault_ends_the_monitor_with_status_4_and_one_error_line") {
        return;
    }
    let mut machine = Machine::start("test=triple-fault", &[]);
    machine.expect("start");
    let (status, errors) = machine.wait();
    assert_eq!(status.code(), Some(4));
    let lines: Vec<_> = errors.lines().collect();
    assert!(
        matches!(*lines, [line] if line.starts_with("error: ") && line.contains("triple fault")),
        "{errors}"
    );
}

#[test]
fn all_processors_start_work_together_and_interrupt_each_other() {
    if !kvm_is_usable("all_processors_start_work_together_and_interrupt_each_other") {
        return;
    }
    for cpus in [2, 4] {
        let arguments = words(&format!("--cpus boot={cpus}"));
        let mut machine = Machine::start("test=smp n=20000", &arguments);
        let line = machine.expect("smp processors");
        assert_eq!(line.number("processors"), cpus);
        assert_eq!(line.number("counted"), cpus * 20_000);
        assert_eq!(line.number("interrupted"), cpus - 1);
        machine.expect_success();
    }
}

#[test]
fn memory_goes_on_behind_the_32_bit_hole() {
    if !kvm_is_usable("memory_goes_on_behind_the_32_bit_hole") {
        return;
    }
    const MIB: u64 = 1 << 20;
    let mut machine = Machine::start("test=memory stride=0x100000", &words("--memory size=4G"));
    let mut parts = Vec::new();
    let total = loop {
        let line = machine.expect("memory");
        if line.0.contains("total=") {
            break line.number("total");
        }
        parts.push((line.number("start"), line.number("size")));
    };
    assert!(
        parts.iter().any(|(start, _)| *start == 4096 * MIB),
        "{parts:x?}"
    );
    assert!(
        parts
            .iter()
            .all(|(start, size)| start + size <= 0xc000_0000 || *start >= 4096 * MIB),
        "{parts:x?}"
    );
    // What is kept back below 1 MiB is all that may be missing.
    assert!(total > 4095 * MIB && total <= 4096 * MIB, "{total}");
    machine.expect_success();
}

#[test]
fn the_configuration_ports_show_the_same_functions_as_the_memory_window() {
    if !kvm_is_usable("the_configuration_ports_show_the_same_functions_as_the_memory_window") {
        return;
    }
    let seen = ["test=start", "test=start pci=ports"].map(|text| {
        let mut machine = Machine::start(text, &[]);
        let count = machine.expect("start").number("pci-functions");
        machine.expect_success();
        count
    });
    assert!(seen[0] > 0);
    assert_eq!(seen[0], seen[1]);
}
