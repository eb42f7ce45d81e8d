//! What remains: after an end in order nothing, after a crash what the next run puts right.

use std::path::Path;

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
        "leftovers::an_end_in_order_leaves_everything_as_it_was",
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
        "leftovers::others_cannot_flush_the_rules_and_theirs_stay",
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

/// Before Linux 6.9 a table belongs to nobody if it is to stay. This kernel is one of those, for the one request that makes the table.
#[test]
fn where_a_table_belongs_to_nobody_it_is_put_back_when_others_flush_it() {
    on_own_host(
        "leftovers::where_a_table_belongs_to_nobody_it_is_put_back_when_others_flush_it",
        || {
            if !Path::new("/usr/bin/strace").exists() {
                eprintln!("skipped: strace is not installed");
                return;
            }
            let folder = tempfile::tempdir().unwrap();
            let making_the_table = "inject=sendto:error=EOPNOTSUPP:when=4";
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
        "leftovers::a_helper_that_was_killed_leaves_its_rules_and_no_dnsmasq_and_the_next_goes_on",
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
fn a_dnsmasq_whose_keeper_was_killed_too_is_ended_by_the_next() {
    on_own_host(
        "leftovers::a_dnsmasq_whose_keeper_was_killed_too_is_ended_by_the_next",
        || {
            let folder = tempfile::tempdir().unwrap();
            let helper = Helper::start(folder.path(), "");
            let [orphan] = dnsmasqs()[..] else {
                panic!("one dnsmasq")
            };
            let keeper = run(&format!("sed -n 's/^PPid:\\t//p' /proc/{orphan}/status"));
            run(&format!("kill -9 {} {}", helper.child.id(), keeper.trim()));
            eventually("the keeper is gone", || {
                !Path::new(&format!("/proc/{}/exe", keeper.trim())).exists()
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
        "leftovers::a_device_that_nobody_has_any_more_is_removed_by_the_next",
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
        "leftovers::networks_that_the_next_run_does_not_have_are_removed",
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
