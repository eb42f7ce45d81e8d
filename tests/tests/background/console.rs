//! The console of a guest in the background.

use std::io::{Read, Write};
use std::process::{Child, Stdio};

use super::host::{Host, eventually};
use super::on_host;

/// A `bulkhead console` whose keys the test presses.
struct Console(Child);

impl Console {
    fn open(host: &Host, words: &[&str]) -> Self {
        let mut command = host.command(&[&["console"], words].concat());
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Self(command.spawn().unwrap())
    }

    fn press(&mut self, keys: &str) {
        let stdin = self.0.stdin.as_mut().unwrap();
        stdin.write_all(keys.as_bytes()).unwrap();
    }

    /// Reads until it has printed this.
    fn expect(&mut self, words: &str) {
        let stdout = self.0.stdout.as_mut().unwrap();
        let mut all = Vec::new();
        let mut byte = [0];
        while !String::from_utf8_lossy(&all).contains(words) {
            let length = stdout.read(&mut byte).unwrap();
            assert_eq!(
                length,
                1,
                "{words} is missing in {}",
                String::from_utf8_lossy(&all)
            );
            all.extend(byte);
        }
    }

    fn end(mut self) {
        assert!(self.0.wait().unwrap().success());
    }
}

/// Sends a line to the guest's console.
pub(crate) fn say(host: &Host, name: &str, line: &str) {
    let mut console = Console::open(host, &[name]);
    console.expect("ready");
    console.press(line);
    console.expect("guest: ");
    console.end();
}

#[test]
fn earlier_output_is_shown_and_ctrl_bracket_leaves() {
    on_host(
        "console::earlier_output_is_shown_and_ctrl_bracket_leaves",
        |host| {
            host.define("g", "echo", "");
            host.ok(&["start", "g"]);
            host.wait_for_console("g", "echo ready");
            let mut console = Console::open(host, &["g"]);
            console.expect("Connected to domain 'g'\nEscape character is ^] (Ctrl + ])\n");
            console.expect("guest: echo ready");
            console.press("\x1d");
            console.end();
            assert_eq!(host.running(), ["g"]);
            host.ok(&["destroy", "g"]);
        },
    );
}

#[test]
fn a_second_client_is_told_who_has_it_unless_it_takes_it() {
    on_host(
        "console::a_second_client_is_told_who_has_it_unless_it_takes_it",
        |host| {
            host.define("g", "echo", "");
            host.ok(&["start", "g"]);
            let mut first = Console::open(host, &["g"]);
            first.expect("echo ready");
            let refused = host.refused(&["console", "g"]);
            let number = first.0.id();
            assert!(
                refused.contains(&format!("process {number} (no terminal) has the console")),
                "{refused}"
            );
            let mut second = Console::open(host, &["g", "--force"]);
            second.expect("echo ready");
            first.end();
            second.press("\x1d");
            second.end();
            eventually("the console is free", || {
                let mut third = Console::open(host, &["g"]);
                third.press("\x1d");
                third.0.wait().unwrap().success()
            });
            host.ok(&["destroy", "g"]);
        },
    );
}

#[test]
fn the_console_goes_on_over_a_reset_and_ends_with_the_guest() {
    on_host(
        "console::the_console_goes_on_over_a_reset_and_ends_with_the_guest",
        |host| {
            host.define("g", "reset", "");
            host.ok(&["start", "g"]);
            let mut console = Console::open(host, &["g"]);
            for _ in 0..3 {
                console.expect("guest: start");
            }
            host.ok(&["destroy", "g"]);
            console.end();
        },
    );
}
