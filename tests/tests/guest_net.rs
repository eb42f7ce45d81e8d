//! A bare-metal guest, the monitor, `bulkhead-net` and the kernel's network stack behind a tap, all real.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

use bulkhead_tests::guest::{
    Backend, Machine, crc32, datagram, in_own_namespace, ip, kvm_is_usable, net, serve_inverted,
};

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
