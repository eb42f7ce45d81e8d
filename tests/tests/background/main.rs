//! Guests in the background: `bulkhead start`, `run -d`, `list`, `console`, `destroy`, and what becomes of them when
//! their supervisor is killed. Each test has a host of its own: real programs, a real KVM.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that cannot go on has failed

mod console;
mod definitions;
mod host;
mod readme;

use std::path::Path;

use bulkhead_tests::guest::{in_own_host, kernel, kvm_is_usable};

use host::{Host, eventually};

fn on_host(test: &str, body: impl FnOnce(&Host)) {
    if !kvm_is_usable(test) {
        return;
    }
    in_own_host(test, || {
        let host = Host::new();
        body(&host);
        host.nothing_left();
    });
}

const DISK: &str = "[[disks]]\npath = \"/run/disk.raw\"\nformat = \"raw\"";

fn with_disk(host: &Host, name: &str, test: &str) {
    let disk = std::fs::File::create("/run/disk.raw").unwrap();
    disk.set_len(16 << 20).unwrap();
    host.define(name, test, DISK);
}

#[test]
fn a_defined_guest_is_started_listed_and_destroyed() {
    on_host("a_defined_guest_is_started_listed_and_destroyed", |host| {
        with_disk(host, "web", "echo");
        assert_eq!(
            host.ok(&["list", "--all"]),
            " Id   Name   State\n-----------------------\n -    web    shut off\n\n"
        );
        assert_eq!(host.ok(&["start", "web"]), "Domain 'web' started\n\n");
        assert_eq!(
            host.ok(&["list"]),
            " Id   Name   State\n----------------------\n 1    web    running\n\n"
        );
        assert_eq!(host.ok(&["domid", "web"]), "1\n\n");
        let uuid = host.ok(&["-q", "domuuid", "1"]);
        assert_eq!(
            host.ok(&["domstate", "--reason", uuid.trim()]),
            "running (booted)\n\n"
        );
        assert!(
            host.refused(&["start", "web"])
                .contains("Domain is already active")
        );
        assert_eq!(host.ok(&["destroy", "web"]), "Domain 'web' destroyed\n\n");
        assert_eq!(
            host.ok(&["domstate", "--reason", "web"]),
            "shut off (destroyed)\n\n"
        );
        assert!(
            host.refused(&["destroy", "web"])
                .contains("domain is not running")
        );
    });
}

#[test]
fn a_guest_that_powers_off_is_gone_and_one_that_resets_begins_anew() {
    let name = "a_guest_that_powers_off_is_gone_and_one_that_resets_begins_anew";
    on_host(name, |host| {
        host.define("off", "start", "");
        host.ok(&["start", "off"]);
        eventually("the guest powers off", || host.running().is_empty());
        assert_eq!(
            host.ok(&["domstate", "--reason", "off"]),
            "shut off (shutdown)\n\n"
        );

        host.define("again", "reset", "");
        host.ok(&["start", "again"]);
        eventually("it has started three times", || {
            let said = host.ok(&["logs", "--console", "again"]);
            said.matches("guest: start").count() >= 3
        });
        host.ok(&["destroy", "again"]);

        host.define("once", "reset", "on_reboot = \"destroy\"");
        host.ok(&["start", "once"]);
        eventually("it ends", || host.running().is_empty());

        host.define("crash", "triple-fault", "");
        host.ok(&["start", "crash"]);
        eventually("it crashes", || host.running().is_empty());
        assert_eq!(
            host.ok(&["domstate", "--reason", "crash"]),
            "shut off (crashed)\n\n"
        );
    });
}

#[test]
fn a_guest_is_suspended_and_resumed() {
    on_host("a_guest_is_suspended_and_resumed", |host| {
        host.define("g", "echo", "");
        host.ok(&["start", "g", "--paused"]);
        assert_eq!(host.ok(&["domstate", "--reason", "g"]), "paused (user)\n\n");
        assert!(
            host.refused(&["suspend", "g"])
                .starts_with("error: Failed to suspend domain 'g': ")
        );
        assert_eq!(host.ok(&["resume", "g"]), "Domain 'g' resumed\n\n");
        assert_eq!(
            host.ok(&["domstate", "--reason", "g"]),
            "running (unpaused)\n\n"
        );
        host.ok(&["destroy", "g"]);
    });
}

#[test]
fn a_guest_without_a_definition_runs_in_the_background() {
    on_host(
        "a_guest_without_a_definition_runs_in_the_background",
        |host| {
            let kernel = kernel().to_str().unwrap();
            let line = [
                "run", "-d", "--name", "t", "--memory", "64M", "--kernel", kernel,
            ];
            let line = [&line[..], &["--cmdline", "test=echo"]].concat();
            assert_eq!(host.ok(&line), "Domain 't' started\n");
            assert!(host.refused(&line).contains("guest 't' is running already"));
            assert_eq!(host.ok(&["-q", "list", "--name", "--transient"]), "t\n");
            host.ok(&["destroy", "t"]);
            assert_eq!(host.ok(&["-q", "list", "--all"]), "");
        },
    );
}

#[test]
fn what_keeps_a_guest_from_starting_is_said_and_nothing_is_left() {
    let name = "what_keeps_a_guest_from_starting_is_said_and_nothing_is_left";
    on_host(name, |host| {
        host.define("g", "echo", DISK);
        let refused = host.refused(&["start", "g"]);
        assert!(
            refused.starts_with("error: Failed to start domain 'g': vda: cannot open the image"),
            "{refused}"
        );
        assert_eq!(refused.lines().count(), 1);
        host.nothing_left();
    });
}

#[test]
fn a_backend_that_is_killed_is_replaced_and_that_is_logged() {
    on_host(
        "a_backend_that_is_killed_is_replaced_and_that_is_logged",
        |host| {
            with_disk(host, "g", "echo");
            host.ok(&["start", "g"]);
            let first = host.process("g", "vda").unwrap();
            host.kill(first);
            eventually("another runs", || {
                host.process("g", "vda").is_some_and(|now| now != first)
            });
            assert!(
                host.ok(&["logs", "--messages", "g"])
                    .contains("vda died (signal: 9 (SIGKILL))")
            );
            host.ok(&["destroy", "g"]);
        },
    );
}

#[test]
fn a_supervisor_that_is_killed_is_replaced_by_the_next_command() {
    on_host(
        "a_supervisor_that_is_killed_is_replaced_by_the_next_command",
        |host| {
            with_disk(host, "g", "echo");
            host.ok(&["start", "g"]);
            let (monitor, disk) = (host.process("g", "vmm"), host.process("g", "vda"));
            for _ in 0..3 {
                host.kill(host.supervisor("g"));
                assert_eq!(host.running(), ["g"]);
                assert_eq!(
                    (host.process("g", "vmm"), host.process("g", "vda")),
                    (monitor, disk)
                );
            }
            // The new one does all that the old one did.
            host.kill(disk.unwrap());
            eventually("the disk's backend is started again", || {
                host.process("g", "vda")
                    .is_some_and(|now| Some(now) != disk)
            });
            host.ok(&["suspend", "g"]);
            host.kill(host.supervisor("g"));
            assert_eq!(host.ok(&["domstate", "g"]), "paused\n\n");
            host.ok(&["resume", "g"]);
            host.ok(&["destroy", "g"]);
        },
    );
}

#[test]
fn the_network_helper_stays_as_long_as_an_adopted_guest_needs_it() {
    let name = "the_network_helper_stays_as_long_as_an_adopted_guest_needs_it";
    on_host(name, |host| {
        host.define("g", "echo", "[[nets]]\nnetwork = \"default\"");
        host.ok(&["start", "g"]);
        let helper = Path::new("/run/bulkhead/net-helper.sock");
        assert!(helper.exists());
        host.kill(host.supervisor("g"));
        assert_eq!(host.running(), ["g"]);
        let card = host.process("g", "net0").unwrap();
        host.kill(card);
        eventually("the card's backend is started again", || {
            host.process("g", "net0").is_some_and(|now| now != card)
        });
        assert!(helper.exists());
        host.ok(&["destroy", "g"]);
        // The last guest has its helper end, and waits for that.
        assert!(!helper.exists());
    });
}

#[test]
fn how_an_adopted_guest_ended_is_known() {
    on_host("how_an_adopted_guest_ended_is_known", |host| {
        for (test, end) in [
            ("echo", "shut off (shutdown)"),
            ("echo,triple-fault", "shut off (crashed)"),
        ] {
            host.define("g", test, "");
            host.ok(&["start", "g"]);
            host.wait_for_console("g", "echo ready");
            host.kill(host.supervisor("g"));
            // The console, and with it the guest, goes on; a line has this guest end.
            console::say(host, "g", "the end\n");
            eventually("the guest ends", || host.running().is_empty());
            assert_eq!(host.ok(&["-q", "domstate", "--reason", "g"]).trim(), end);
        }
    });
}

#[test]
fn a_guest_that_ended_without_a_supervisor_is_not_in_the_way() {
    on_host(
        "a_guest_that_ended_without_a_supervisor_is_not_in_the_way",
        |host| {
            with_disk(host, "g", "echo");
            host.ok(&["start", "g"]);
            host.wait_for_console("g", "echo ready");
            let monitor = host.process("g", "vmm").unwrap();
            let disk = host.process("g", "vda").unwrap();
            host.kill(host.supervisor("g"));
            host.kill(monitor);
            host.kill(disk);
            assert_eq!(host.running(), [""; 0]);
            host.ok(&["start", "g"]);
            host.ok(&["destroy", "g"]);
        },
    );
}

#[test]
fn two_commands_at_once_start_one_guest() {
    on_host("two_commands_at_once_start_one_guest", |host| {
        host.define("g", "echo", "");
        for _ in 0..10 {
            let commands: Vec<_> = (0..4)
                .map(|_| {
                    let mut command = host.command(&["start", "g"]);
                    command.stdout(std::process::Stdio::null());
                    command.stderr(std::process::Stdio::null());
                    command.spawn().unwrap()
                })
                .collect();
            let ends = commands
                .into_iter()
                .map(|mut command| command.wait().unwrap());
            assert_eq!(ends.filter(std::process::ExitStatus::success).count(), 1);
            assert_eq!(host.running(), ["g"]);
            host.ok(&["destroy", "g"]);
        }
    });
}

#[test]
fn twenty_guests_start_and_end_at_once() {
    on_host("twenty_guests_start_and_end_at_once", |host| {
        let names: Vec<String> = (0..20).map(|number| format!("g{number}")).collect();
        for name in &names {
            host.define(name, "echo", "");
        }
        let all = |verb: &str| {
            let commands: Vec<_> = names
                .iter()
                .map(|name| host.command(&["-q", verb, name]).spawn().unwrap())
                .collect();
            for mut command in commands {
                assert!(command.wait().unwrap().success());
            }
        };
        all("start");
        let ids = host.ok(&["-q", "list", "--id"]);
        let mut ids: Vec<u32> = ids.lines().map(|id| id.trim().parse().unwrap()).collect();
        ids.sort_unstable();
        assert_eq!(ids, (1..=20).collect::<Vec<_>>());
        all("destroy");
    });
}
