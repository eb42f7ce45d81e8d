//! What a helper leaves: nothing after an orderly end; after a crash, what the next run takes over or removes.

#![allow(
    clippy::disallowed_macros,
    reason = "a test reports to whoever runs it"
)]

use std::net::UdpSocket;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use bulkhead_net_protocol::TapRequest;

use crate::host::{Guest, Helper, attempt, dnsmasqs, eventually, on_own_host, run, traces};

/// A host on which somebody else has rules, bridges and routes.
fn busy_host() {
    run(
        "ip link add other0 type bridge && ip addr add 10.1.0.1/24 dev other0 && ip link set other0 up",
    );
    run(
        "nft add table inet filter && nft 'add chain inet filter forward { type filter hook forward priority 0; }'",
    );
    run(
        "nft add table ip nat && nft 'add chain ip nat post { type nat hook postrouting priority 100; }'",
    );
}

fn forwarding() -> String {
    run("cat /proc/sys/net/ipv4/ip_forward").trim().to_owned()
}

fn stand_and_stop(folder: &Path) {
    let helper = Helper::start(folder, "");
    let rules = run("nft list table inet bulkhead");
    assert!(
        rules.contains("masquerade") && rules.contains("flags owner"),
        "{rules}"
    );
    assert_eq!(forwarding(), "1");
    let lease = helper.lease(&TapRequest::on("default")).unwrap();
    // Stopped while a guest still has its device.
    helper.stop();
    drop(lease);
}

#[test]
fn an_end_in_order_leaves_everything_as_it_was() {
    on_own_host(
        "previous_run::an_end_in_order_leaves_everything_as_it_was",
        || {
            let folder = tempfile::tempdir().unwrap();
            busy_host();
            for forwarded in ["0", "1"] {
                run(&format!("echo {forwarded} > /proc/sys/net/ipv4/ip_forward"));
                let before = traces(folder.path());
                stand_and_stop(folder.path());
                assert_eq!(traces(folder.path()), before);
            }
        },
    );
}

#[test]
fn others_cannot_flush_the_rules_and_theirs_stay() {
    on_own_host(
        "previous_run::others_cannot_flush_the_rules_and_theirs_stay",
        || {
            let folder = tempfile::tempdir().unwrap();
            busy_host();
            let helper = Helper::start(folder.path(), "--network dhcp=off");
            let theirs = || run("nft list table inet filter; nft list table ip nat");
            let (before, ours) = (theirs(), run("nft list table inet bulkhead"));
            assert!(!attempt("nft delete table inet bulkhead").status.success());
            assert_eq!(theirs(), before);

            run("nft flush ruleset");

            assert_eq!(run("nft list table inet bulkhead"), ours);
            helper.stop();
            assert_eq!(run("nft list ruleset"), "");
        },
    );
}

/// Before Linux 6.9 a table belongs to nobody if it is to stay. This kernel is one of those, for the one request that
/// makes the table.
#[test]
fn where_a_table_belongs_to_nobody_it_is_put_back_when_others_flush_it() {
    on_own_host(
        "previous_run::where_a_table_belongs_to_nobody_it_is_put_back_when_others_flush_it",
        || {
            if !Path::new("/usr/bin/strace").exists() {
                eprintln!("skipped: strace is not installed");
                return;
            }
            let folder = tempfile::tempdir().unwrap();
            let making_the_table = "inject=sendto:error=EOPNOTSUPP:when=6";
            let trace = format!("strace -f -o /dev/null -e trace=sendto -e {making_the_table}");
            let helper = Helper::start_under(&trace, folder.path(), "--network dhcp=off");
            let ours = run("nft list table inet bulkhead");
            assert!(!ours.contains("owner"), "{ours}");

            run("nft flush ruleset");

            let shown = || attempt("nft list table inet bulkhead").stdout;
            eventually("the table is there again", || shown() == ours.as_bytes());
            run("nft flush chain inet bulkhead from_guests");
            eventually("the chain is as it was", || shown() == ours.as_bytes());
            helper.stop();
            assert_eq!(run("nft list ruleset"), "");
        },
    );
}

#[test]
fn a_helper_that_was_killed_leaves_its_rules_and_no_dnsmasq_and_the_next_goes_on() {
    on_own_host(
        "previous_run::a_helper_that_was_killed_leaves_its_rules_and_no_dnsmasq_and_the_next_goes_on",
        || {
            let folder = tempfile::tempdir().unwrap();
            busy_host();
            let before = traces(folder.path());
            let helper = Helper::start(folder.path(), "");
            let guest = Guest::new(&helper, &TapRequest::on("default"));
            guest.dhcp(folder.path());
            std::fs::remove_file(folder.path().join("udhcpc.sh")).unwrap();

            helper.kill();

            assert!(run("nft list tables").contains("inet bulkhead"));
            // Started at once, while the old dnsmasq may still be ending.
            let helper = Helper::start(folder.path(), "");
            assert_eq!(dnsmasqs().len(), 1);
            assert!(run("nft list tables").contains("bulkhead"));
            assert!(
                guest.can_ping("192.168.124.1"),
                "the guest of the killed helper goes on"
            );
            assert_eq!(forwarding(), "1");

            helper.stop();
            assert_eq!(traces(folder.path()), before);
            assert_eq!(forwarding(), "0", "as it was before the first");
        },
    );
}

#[test]
fn a_dnsmasq_whose_init_was_killed_too_is_ended_by_the_next() {
    on_own_host(
        "previous_run::a_dnsmasq_whose_init_was_killed_too_is_ended_by_the_next",
        || {
            let folder = tempfile::tempdir().unwrap();
            let helper = Helper::start(folder.path(), "");
            let [orphan] = dnsmasqs()[..] else {
                panic!("one dnsmasq")
            };
            let init = run(&format!("sed -n 's/^PPid:\\t//p' /proc/{orphan}/status"));
            run(&format!("kill -9 {} {}", helper.child.id(), init.trim()));
            eventually("the init is gone", || {
                !Path::new(&format!("/proc/{}/exe", init.trim())).exists()
            });
            helper.wait_for_the_end();

            let helper = Helper::start(folder.path(), "");

            assert!(!dnsmasqs().contains(&orphan));
            assert_eq!(dnsmasqs().len(), 1);
            helper.stop();
            assert!(dnsmasqs().is_empty());
        },
    );
}

#[test]
fn a_device_that_nobody_has_any_more_is_removed_by_the_next() {
    on_own_host(
        "previous_run::a_device_that_nobody_has_any_more_is_removed_by_the_next",
        || {
            let folder = tempfile::tempdir().unwrap();
            let helper = Helper::start(folder.path(), "--network dhcp=off");
            let lease = || helper.lease(&TapRequest::on("default")).unwrap();
            let (gone, held) = (lease(), lease());
            helper.signal(rustix::process::Signal::KILL);
            helper.wait_for_the_end();
            let [gone_name, held_name] = [&gone, &held].map(|l| l.info.interface.clone());
            drop(gone);

            let helper = Helper::start(folder.path(), "--network dhcp=off");

            let links = run("ip -o link");
            assert!(
                !links.contains(&gone_name) && links.contains(&held_name),
                "{links}"
            );
            helper.stop();
            assert!(!run("ip -o link").contains("bhtap"));
            drop(held);
        },
    );
}

#[test]
fn networks_that_the_next_run_does_not_have_are_removed() {
    on_own_host(
        "previous_run::networks_that_the_next_run_does_not_have_are_removed",
        || {
            let folder = tempfile::tempdir().unwrap();
            let before = traces(folder.path());
            let both =
                "--network dhcp=off --network name=old,bridge=old0,subnet=10.5.0.0/24,dhcp=off";
            Helper::start(folder.path(), both).kill();
            assert!(run("ip -o link").contains("old0"));

            // The other one has another subnet now.
            let helper = Helper::start(folder.path(), "--network dhcp=off,subnet=10.6.0.0/24");

            let links = run("ip -o -4 addr");
            assert!(
                !links.contains("old0") && !links.contains("192.168.124.1"),
                "{links}"
            );
            assert!(links.contains("10.6.0.1/24"), "{links}");
            helper.stop();
            assert_eq!(traces(folder.path()), before);
        },
    );
}

#[test]
fn guests_stay_on_networks_that_the_next_run_is_not_told_of_until_they_end() {
    on_own_host(
        "previous_run::guests_stay_on_networks_that_the_next_run_is_not_told_of_until_they_end",
        || {
            let folder = tempfile::tempdir().unwrap();
            run(
                "ip link add br7 type bridge && ip addr add 10.7.0.1/24 dev br7 && ip link set br7 up",
            );
            run("ip tuntap add spare mode tap");
            let before = traces(folder.path());
            let networks = "--network default --network name=lan,bridge=br7,mode=bridge \
                --network name=bare,bridge=bare0,subnet=10.5.0.0/24,dhcp=off \
                --network name=empty,bridge=empty0,subnet=10.8.0.0/24,dhcp=off";
            let other = "--network name=other,bridge=other0,subnet=10.9.0.0/24,dhcp=off";
            let helper = Helper::start(folder.path(), networks);
            let guest = Guest::new(&helper, &TapRequest::on("default"));
            let neighbour = Guest::new(&helper, &TapRequest::on("lan"));
            guest.dhcp(folder.path());
            neighbour.machine.run("ip addr add 10.7.0.9/24 dev eth0");
            // Somebody else's interface on a bridge of ours.
            run("ip link set spare master bare0 up");
            let pings = Pings::start(&guest, "192.168.124.1");
            pings.go_on();

            helper.kill();
            pings.go_on();
            let (helper, said) = Helper::start_heard(folder.path(), other);
            pings.go_on();

            assert!(
                said.contains("default (bulkhead0), lan (br7), bare (bare0) stay"),
                "{said}"
            );
            assert_eq!(said.lines().count(), 1, "{said}");
            let links = run("ip -o link");
            assert!(
                links.contains("bare0") && !links.contains("empty0"),
                "{links}"
            );
            assert!(neighbour.can_ping("10.7.0.1"));
            // A guest whose backend starts again finds its network, and its address.
            let late = Guest::new(&helper, &TapRequest::on("default"));
            assert!(late.dhcp(folder.path()).contains("ip=192.168.124."));
            assert_eq!(pings.lost(), 0);
            std::fs::remove_file(folder.path().join("udhcpc.sh")).unwrap();

            helper.kill();
            drop((guest, neighbour, late));
            run("ip link set spare nomaster down");
            eventually("nobody has a TAP device open", || {
                !run("ip -o link show up").contains("bhtap")
                    || !run("ip -o link | grep bhtap").contains("LOWER_UP")
            });
            let helper = Helper::start(folder.path(), other);
            let links = run("ip -o link");
            assert!(
                !["bulkhead0", "bare0", "bhtap"]
                    .iter()
                    .any(|gone| links.contains(gone)),
                "{links}"
            );
            helper.stop();
            assert_eq!(traces(folder.path()), before);
        },
    );
}

/// A guest that sends packets to this host all the time, which sends each of them back.
struct Pings {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    lost: JoinHandle<u64>,
}

impl Pings {
    fn start(guest: &Guest, address: &'static str) -> Pings {
        let host = UdpSocket::bind((address, 7)).unwrap();
        std::thread::spawn(move || {
            let mut packet = [0; 8];
            while let Ok((length, from)) = host.recv_from(&mut packet) {
                let _ = host.send_to(&packet[..length], from);
            }
        });
        let (stop, answered) = (Arc::default(), Arc::default());
        let guest = guest.machine.udp("0.0.0.0:0");
        guest
            .set_read_timeout(Some(Duration::from_secs(2)))
            .unwrap();
        guest.connect((address, 7)).unwrap();
        let shared = (Arc::clone(&stop), Arc::clone(&answered));
        let lost = std::thread::spawn(move || ping(&guest, &shared.0, &shared.1));
        Pings {
            stop,
            answered,
            lost,
        }
    }

    /// Waits for some more answers.
    fn go_on(&self) {
        let enough = self.answered.load(Ordering::Relaxed) + 20;
        eventually("answers", || {
            self.answered.load(Ordering::Relaxed) >= enough
        });
    }

    /// How many were not answered.
    fn lost(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.lost.join().unwrap()
    }
}

fn ping(guest: &UdpSocket, stop: &AtomicBool, answered: &AtomicU64) -> u64 {
    let mut lost = 0;
    for number in 0u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let mut answer = [0; 8];
        let sent = guest.send(&number.to_ne_bytes());
        match sent.and_then(|_| guest.recv(&mut answer)) {
            Ok(_) if answer == number.to_ne_bytes() => answered.fetch_add(1, Ordering::Relaxed),
            _ => {
                lost += 1;
                0
            }
        };
        std::thread::sleep(Duration::from_millis(5));
    }
    lost
}
