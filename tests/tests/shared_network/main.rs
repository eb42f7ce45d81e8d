//! Two guests on one network: whatever becomes of one of them, or of the helper that made the network, costs the
//! other no packet.
//!
//! Each is run by `bulkhead run` in namespaces of the test's own: real programs, a real KVM, a real bridge. The
//! guests send datagrams to a server on the network's gateway; one that is lost is sent again much later, and the
//! server counts those.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that cannot go on has failed

mod host;
mod peer;

use bulkhead_tests::guest::{in_own_host, kvm_is_usable};
use rustix::process::Signal;

use host::{Guest, Host, eventually};

/// Runs two guests, and calls `body` once both have traffic.
fn with_two(test: &str, first: &str, body: impl FnOnce(&Host, Guest, &Guest)) {
    if !kvm_is_usable(test) {
        return;
    }
    in_own_host(test, || {
        let host = Host::new();
        let a = Guest::run("a", 2, first);
        // It has started the helper.
        host.wait_for_traffic(&a);
        let b = Guest::run("b", 3, "test=net n=1000000000");
        host.wait_for_traffic(&b);
        body(&host, a, &b);
        host.no_loss(&b);
        b.interrupt();
        let (status, said) = b.end();
        assert_eq!(status, Some(0), "{said}");
        let about_the_helper = |line: &str| line.starts_with("warning: net-helper");
        assert!(said.lines().all(about_the_helper), "{said}");
        host.nothing_left();
    });
}

/// The first, whose `bulkhead` started the helper, ends; the second goes on with the same helper.
fn the_other_goes_on(test: &str, first: &str, end: impl FnOnce(&Host, Guest)) {
    with_two(test, first, |host, a, b| {
        let helper = host.helper();
        end(host, a);
        host.no_loss(b);
        assert_eq!(host.helper(), helper, "the helper stays");
    });
}

const ENDLESS: &str = "test=net n=1000000000";

#[test]
fn the_guest_that_began_powers_off() {
    let name = "the_guest_that_began_powers_off";
    the_other_goes_on(name, "test=net n=2000", |_, a| {
        assert_eq!(a.end(), (Some(0), String::new()));
    });
}

#[test]
fn it_reboots() {
    the_other_goes_on("it_reboots", "test=net,reset n=200", |host, a| {
        // Each life says its address once.
        for _ in 0..3 {
            host.wait_for_traffic(&a);
            a.wait_for_line("guest: net mac");
        }
        a.signal(Signal::TERM);
        assert_eq!(a.end(), (Some(0), String::new()));
    });
}

#[test]
fn it_is_interrupted() {
    the_other_goes_on("it_is_interrupted", ENDLESS, |_, a| {
        a.interrupt();
        assert_eq!(a.end(), (Some(0), String::new()));
    });
}

#[test]
fn it_is_terminated() {
    the_other_goes_on("it_is_terminated", ENDLESS, |_, a| {
        a.signal(Signal::TERM);
        assert_eq!(a.end(), (Some(0), String::new()));
    });
}

#[test]
fn its_bulkhead_is_killed() {
    the_other_goes_on("its_bulkhead_is_killed", ENDLESS, |host, a| {
        let processes = a.processes();
        a.signal(Signal::KILL);
        assert_eq!(a.end().0, None);
        eventually("all of its processes end", || {
            host.running(&processes).is_empty()
        });
        // The run folder stays, and the next run of that name takes it over.
        assert!(host.run_folder("a").exists());
        let again = Guest::run("a", 2, "test=net n=8");
        assert_eq!(again.end(), (Some(0), String::new()));
        assert!(!host.run_folder("a").exists());
    });
}

#[test]
fn its_monitor_is_killed() {
    the_other_goes_on("its_monitor_is_killed", ENDLESS, |_, a| {
        a.kill_process("bulkhead-vmm");
        let (status, said) = a.end();
        assert_eq!(status, Some(1), "{said}");
        assert!(said.starts_with("error: vmm: "), "{said}");
    });
}

#[test]
fn its_network_backend_is_killed() {
    the_other_goes_on("its_network_backend_is_killed", ENDLESS, |host, a| {
        a.kill_process("bulkhead-net");
        // The backend may have lost frames of this guest, which goes on.
        host.forgive(&a);
        host.wait_for_traffic(&a);
        a.interrupt();
        let (status, said) = a.end();
        assert_eq!(status, Some(0), "{said}");
    });
}

#[test]
fn the_helper_is_killed() {
    with_two("the_helper_is_killed", ENDLESS, |host, a, b| {
        let helper = host.helper();
        for _ in 0..3 {
            host.kill_helper();
            host.no_loss(&a);
            host.no_loss(b);
            eventually("another helper serves", || host.helper_serves());
        }
        assert_ne!(host.helper(), helper);
        // It serves new guests, and those that were there are none the worse for it.
        let c = Guest::run("c", 4, "test=net n=100");
        assert_eq!(c.end(), (Some(0), String::new()));
        host.no_loss(&a);
        a.interrupt();
        let (status, said) = a.end();
        assert_eq!(status, Some(0), "{said}");
    });
}

#[test]
fn a_helper_that_cannot_remove_its_socket_says_so_through_whoever_is_last() {
    let name = "a_helper_that_cannot_remove_its_socket_says_so_through_whoever_is_last";
    if !kvm_is_usable(name) {
        return;
    }
    in_own_host(name, || {
        let host = Host::new();
        for starter_is_last in [false, true] {
            let a = Guest::run("a", 2, ENDLESS);
            host.wait_for_traffic(&a);
            let b = Guest::run("b", 3, ENDLESS);
            host.wait_for_traffic(&b);
            host.kill_broker_of_helper();
            let [first, last] = if starter_is_last { [b, a] } else { [a, b] };
            first.interrupt();
            assert_eq!(first.end(), (Some(0), String::new()));
            last.interrupt();
            let (status, said) = last.end();
            assert_eq!(status, Some(i32::from(starter_is_last)), "{said}");
            let naming = said
                .lines()
                .filter(|line| line.contains("/run/bulkhead/net-helper.sock"));
            assert_eq!(naming.count(), 1, "{said}");
            assert!(host.is_stale_socket());
            // The next one's helper takes the socket's place, and removes it.
            let c = Guest::run("c", 4, "test=net n=100");
            assert_eq!(c.end(), (Some(0), String::new()));
            host.nothing_left();
        }
    });
}

#[test]
fn two_that_start_at_once_share_one_helper() {
    let name = "two_that_start_at_once_share_one_helper";
    if !kvm_is_usable(name) {
        return;
    }
    in_own_host(name, || {
        let host = Host::new();
        for _ in 0..3 {
            let guests = [Guest::run("a", 2, ENDLESS), Guest::run("b", 3, ENDLESS)];
            guests.iter().for_each(|guest| host.wait_for_traffic(guest));
            host.helper();
            guests.iter().for_each(Guest::interrupt);
            for guest in guests {
                assert_eq!(guest.end(), (Some(0), String::new()));
            }
            host.nothing_left();
        }
    });
}

#[test]
fn a_guest_that_starts_while_the_helper_ends_has_another() {
    let name = "a_guest_that_starts_while_the_helper_ends_has_another";
    if !kvm_is_usable(name) {
        return;
    }
    in_own_host(name, || {
        let host = Host::new();
        for _ in 0..3 {
            let a = Guest::run("a", 2, ENDLESS);
            host.wait_for_traffic(&a);
            a.interrupt();
            eventually("the helper ends", || !host.helper_serves());
            let b = Guest::run("b", 3, "test=net n=100");
            assert_eq!(b.end(), (Some(0), String::new()));
            assert_eq!(a.end(), (Some(0), String::new()));
            host.nothing_left();
        }
    });
}

#[test]
fn a_helper_whose_starter_is_killed_ends_by_itself() {
    let name = "a_helper_whose_starter_is_killed_ends_by_itself";
    in_own_host(name, || {
        let host = Host::new();
        for state in ["bulkhead-net-he", "dnsmasq"] {
            let a = Guest::run("a", 2, ENDLESS);
            // It has just been started, or has nearly made its network.
            eventually(state, || host.runs(state));
            a.signal(Signal::KILL);
            assert_eq!(a.end().0, None);
            host.nothing_left_but(&["/run/bulkhead", "/run/bulkhead/a", "/run/bulkhead/a/"]);
        }
    });
}
