//! The power button, pressed through the API, as a bare-metal guest sees it on this machine's KVM.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ChildStdin;

use bulkhead_tests::guest::{Machine, kvm_is_usable, put};

/// A guest that does what it is sent.
struct Guest {
    machine: Machine,
    commands: ChildStdin,
    api: PathBuf,
    _folder: tempfile::TempDir,
}

impl Guest {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let api = folder.path().join("api.sock");
        let mut path = OsString::from("path=");
        path.push(&api);
        let arguments = ["--api-socket".into(), path];
        let (mut machine, commands) = Machine::start_with_input("test=button", &arguments);
        machine.expect("button line=");
        Self {
            machine,
            commands,
            api,
            _folder: folder,
        }
    }

    fn put(&self, endpoint: &str) -> u16 {
        put(&self.api, endpoint)
    }

    fn press(&self) {
        assert_eq!(self.put("vm.power-button"), 204);
    }

    fn send(&mut self, command: &str) {
        writeln!(self.commands, "{command}").unwrap();
    }

    /// Has the guest do something, and returns how many presses it has seen since it started.
    fn ask(&mut self, command: &str) -> u64 {
        self.send(command);
        let line = self.machine.expect(&format!("button {command}"));
        line.number("presses")
    }

    fn end(mut self) {
        self.send("end");
        self.machine.expect_success();
    }
}

#[test]
fn a_guest_sees_each_press_once_and_powers_off() {
    if !kvm_is_usable("a_guest_sees_each_press_once_and_powers_off") {
        return;
    }
    let mut guest = Guest::start();
    guest.ask("enable");
    for number in 1..=20 {
        guest.press();
        assert_eq!(guest.ask("wait"), number);
    }
    assert_eq!(guest.ask("count"), 20);
    guest.end();
}

#[test]
fn a_press_while_the_guest_is_paused_is_seen_once_when_it_is_resumed() {
    if !kvm_is_usable("a_press_while_the_guest_is_paused_is_seen_once_when_it_is_resumed") {
        return;
    }
    let mut guest = Guest::start();
    guest.ask("enable");
    assert_eq!(guest.put("vm.pause"), 204);
    for _ in 0..3 {
        guest.press();
    }
    assert_eq!(guest.put("vm.resume"), 204);
    assert_eq!(guest.ask("wait"), 1);
    guest.press();
    assert_eq!(guest.ask("wait"), 2);
    guest.end();
}

// KVM passes a press on some time after the API's answer, so one can still be seen by a guest that listens afterwards.

#[test]
fn a_press_before_the_guest_listens_does_no_harm_and_the_next_is_seen() {
    if !kvm_is_usable("a_press_before_the_guest_listens_does_no_harm_and_the_next_is_seen") {
        return;
    }
    let mut guest = Guest::start();
    guest.press();
    guest.ask("enable");
    guest.press();
    assert!((1..=2).contains(&guest.ask("wait")));
    assert!((1..=2).contains(&guest.ask("count")));
    guest.end();
}

#[test]
fn a_thousand_presses_hold_up_neither_the_guest_nor_the_api() {
    if !kvm_is_usable("a_thousand_presses_hold_up_neither_the_guest_nor_the_api") {
        return;
    }
    let mut guest = Guest::start();
    // Nobody listens to these.
    for _ in 0..1000 {
        guest.press();
    }
    guest.ask("enable");
    for _ in 0..1000 {
        guest.press();
    }
    // Those that come before the guest has handled the one before are one with it.
    assert!((1..=1002).contains(&guest.ask("wait")));
    let seen = guest.ask("count");
    guest.press();
    let last = guest.ask("wait");
    assert!(last > seen && last <= 1003, "{seen} {last}");
    guest.end();
}
