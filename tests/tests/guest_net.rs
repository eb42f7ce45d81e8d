//! A bare-metal guest, the monitor, `bulkhead-net` and the kernel's network stack behind a tap, all real.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

use std::os::fd::{AsFd, AsRawFd};

use bulkhead_tests::guest::{
    Backend, Machine, crc32, datagram, exit_count, in_own_namespace, ip, kvm_is_usable, net,
    serve_inverted,
};

use rustix::io::{FdFlags, fcntl_setfd};

const MAC: &str = "52:54:00:12:34:56";
const SEED: u64 = 1;

/// A guest at 10.9.0.2 behind `tap0`, the host at 10.9.0.1.
fn machine(words: &str, backend: &Backend, more: &str) -> Machine {
    let words = format!("test=net ip=10.9.0.2 peer=10.9.0.1 {words}");
    Machine::start(&words, &net(backend, more))
}

fn make_tap(name: &str) {
    ip(&format!("tuntap add {name} mode tap vnet_hdr"));
    ip(&format!("address add 10.9.0.1/24 dev {name}"));
    ip(&format!("link set {name} up"));
}

fn check_payloads(count: u64, received: &[Vec<u8>]) -> (u64, u64) {
    let expected: Vec<Vec<u8>> = (0..count).map(|index| datagram(SEED, index)).collect();
    assert!(
        received == expected,
        "the host did not receive what the guest sent"
    );
    let sent = expected.concat();
    let answered: Vec<u8> = sent.iter().map(|byte| !byte).collect();
    (crc32(&sent), crc32(&answered))
}

#[test]
fn frames_reach_the_host_and_come_back() {
    const COUNT: u64 = 1000;
    const TEST: &str = "frames_reach_the_host_and_come_back";
    if !kvm_is_usable(TEST) {
        return;
    }
    in_own_namespace(TEST, || {
        make_tap("tap0");
        let folder = tempfile::tempdir().unwrap();
        let answers = serve_inverted("10.9.0.1:7");
        let backend = Backend::net(folder.path(), "net0", &["--tap", "tap0", "--mac", MAC]);
        let mut machine = machine(&format!("n={COUNT}"), &backend, "");

        assert_eq!(machine.expect("net mac").value("mac"), MAC);
        assert_eq!(machine.expect("net ping").number("replies"), 4);
        let end = machine.expect("net udp");
        let interrupts = machine.expect("net interrupts");
        machine.expect_success();

        let (sent, answered) = check_payloads(COUNT, &answers.received());
        assert_eq!(end.number("sent-crc32"), sent);
        assert_eq!(end.number("received-crc32"), answered);
        assert!(interrupts.number("rx") > 0);
        assert_eq!(interrupts.number("repeated"), 0);
        let (status, errors) = backend.wait();
        assert_eq!((status.code(), errors.as_str()), (Some(0), ""));
    });
}

#[test]
fn the_guest_gets_the_mac_that_the_monitor_was_told() {
    const TEST: &str = "the_guest_gets_the_mac_that_the_monitor_was_told";
    const OTHER_MAC: &str = "52:54:00:65:43:21";
    if !kvm_is_usable(TEST) {
        return;
    }
    in_own_namespace(TEST, || {
        make_tap("tap0");
        let folder = tempfile::tempdir().unwrap();
        let answers = serve_inverted("10.9.0.1:7");
        let backend = Backend::net(folder.path(), "net0", &["--tap", "tap0", "--mac", MAC]);
        let mut machine = machine("n=8", &backend, &format!(",mac={OTHER_MAC}"));
        assert_eq!(machine.expect("net mac").value("mac"), OTHER_MAC);
        machine.expect_success();
        check_payloads(8, &answers.received());
    });
}

#[test]
fn a_backend_killed_during_traffic_loses_frames_at_most() {
    const COUNT: u64 = 800;
    const KILLS: usize = 4;
    const TEST: &str = "a_backend_killed_during_traffic_loses_frames_at_most";
    if !kvm_is_usable(TEST) {
        return;
    }
    in_own_namespace(TEST, || {
        make_tap("tap0");
        let folder = tempfile::tempdir().unwrap();
        let answers = serve_inverted("10.9.0.1:7");
        let mut backend = Backend::net(folder.path(), "net0", &["--tap", "tap0", "--mac", MAC]);
        let mut machine = machine(&format!("n={COUNT}"), &backend, "");
        for _ in 0..KILLS {
            machine.expect("net datagrams");
            backend.kill_and_restart();
        }
        let end = machine.expect("net udp");
        machine.expect_success_after_losing_backend(KILLS);
        let (sent, answered) = check_payloads(COUNT, &answers.received());
        assert_eq!(end.number("sent-crc32"), sent);
        assert_eq!(end.number("received-crc32"), answered);
    });
}

#[test]
fn an_inherited_tap_serves_as_well() {
    const TEST: &str = "an_inherited_tap_serves_as_well";
    if !kvm_is_usable(TEST) {
        return;
    }
    in_own_namespace(TEST, || {
        make_tap("tap0");
        let name = tap::InterfaceName::new("tap0").unwrap();
        let tap = tap::Tap::open(&name, tap::Options::VNET_HDR).unwrap();
        let number = inherit(&tap);
        let folder = tempfile::tempdir().unwrap();
        let answers = serve_inverted("10.9.0.1:7");
        let backend = Backend::net(folder.path(), "net0", &["--tap-fd", &number]);
        let mut machine = machine("n=64", &backend, "");
        machine.expect("net udp");
        machine.expect_success();
        check_payloads(64, &answers.received());
    });
}

/// Lets the programs started from now on have the file of `tap`. Returns its number.
fn inherit(tap: &impl AsFd) -> String {
    let fd = tap.as_fd();
    fcntl_setfd(fd, FdFlags::empty()).unwrap();
    fd.as_raw_fd().to_string()
}

#[test]
fn traffic_does_not_wake_the_monitor() {
    const COUNT: usize = 2000;
    const TEST: &str = "traffic_does_not_wake_the_monitor";
    if !kvm_is_usable(TEST) {
        return;
    }
    in_own_namespace(TEST, || {
        make_tap("tap0");
        let folder = tempfile::tempdir().unwrap();
        let answers = serve_inverted("10.9.0.1:7");
        let backend = Backend::net(folder.path(), "net0", &["--tap", "tap0"]);
        let api = folder.path().join("api.sock");
        let mut arguments = net(&backend, "").to_vec();
        arguments.extend([
            "--api-socket".into(),
            format!("path={}", api.display()).into(),
        ]);
        let words = format!("test=net ip=10.9.0.2 peer=10.9.0.1 n={COUNT} progress=0");
        let mut machine = Machine::start(&words, &arguments);

        // Its lines about the start are written by then, on a busy machine too; until the last datagram it has no
        // more to say.
        answers.wait_for(COUNT / 10);
        let before = exit_count(&api);
        answers.wait_for(COUNT - 8);
        let after = exit_count(&api);

        let end = machine.expect("net interrupts");
        machine.expect_success();
        assert!(end.number("rx") > 0 && before > 0);
        assert_eq!(
            after - before,
            0,
            "KVM_RUN returned while datagrams went to and fro"
        );
    });
}
