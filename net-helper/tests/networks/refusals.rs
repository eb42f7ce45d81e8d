//! Configurations with which a helper refuses to start: it writes one line and leaves the host as it was.

use std::os::unix::net::UnixListener;

use crate::host::{Helper, on_own_host, refused, run, traces};

#[test]
fn a_subnet_in_use_is_named_with_where_it_is_in_use() {
    on_own_host(
        "refusals::a_subnet_in_use_is_named_with_where_it_is_in_use",
        || {
            let folder = tempfile::tempdir().unwrap();
            run(
                "ip link add eth7 type veth peer name far7 && ip link set eth7 up && ip link set far7 up",
            );
            let reset = "ip addr flush dev eth7; ip route flush dev eth7";
            for (used, why) in [
                (
                    "ip addr add 192.168.124.77/24 dev eth7",
                    "192.168.124.77/24 on eth7",
                ),
                (
                    "ip addr add 192.168.1.1/16 dev eth7",
                    "192.168.1.1/16 on eth7",
                ),
                (
                    "ip addr add 10.0.0.1/24 dev eth7 && ip route add 192.168.124.128/25 via 10.0.0.2",
                    "192.168.124.128/25 on eth7",
                ),
                // An address of an interface that is down has no route.
                (
                    "ip link add eth8 type bridge && ip addr add 192.168.124.3/32 dev eth8",
                    "192.168.124.3/32 on eth8",
                ),
            ] {
                run(used);
                let before = traces(folder.path());
                let line = refused(folder.path(), "", 1);
                assert!(
                    line.contains("subnet 192.168.124.0/24 is already in use on this host"),
                    "{line}"
                );
                assert!(line.contains(why), "{line}");
                assert_eq!(traces(folder.path()), before);
                run(reset);
            }
            run("ip link del eth8");
            // A default route does not use this subnet.
            run("ip addr add 10.0.0.1/24 dev eth7 && ip route add default via 10.0.0.2");
            Helper::start(folder.path(), "--network dhcp=off").stop();
        },
    );
}

#[test]
fn interfaces_of_others_are_not_taken() {
    on_own_host("refusals::interfaces_of_others_are_not_taken", || {
        let folder = tempfile::tempdir().unwrap();
        run("ip link add bulkhead0 type bridge && ip link add veth7 type veth");
        let before = traces(folder.path());
        for (options, why) in [
            ("", "interface bulkhead0 exists and is not this program's"),
            ("--network mode=bridge,bridge=br9", "there is no bridge br9"),
            (
                "--network mode=bridge,bridge=veth7",
                "veth7 is not a bridge",
            ),
        ] {
            let line = refused(folder.path(), options, 1);
            assert!(line.contains(why), "{line}");
            assert_eq!(traces(folder.path()), before);
        }
    });
}

#[test]
fn one_helper_at_a_time() {
    on_own_host("refusals::one_helper_at_a_time", || {
        let folder = tempfile::tempdir().unwrap();
        let helper = Helper::start(folder.path(), "--network dhcp=off");
        let before = traces(folder.path());
        assert!(refused(folder.path(), "", 1).contains("another bulkhead-net-helper is running"));
        let elsewhere = "--network bridge=b7,subnet=10.9.0.0/24,dhcp=off";
        let other = tempfile::tempdir().unwrap();
        let before_other = traces(other.path());
        assert!(
            refused(other.path(), elsewhere, 1).contains("is another bulkhead-net-helper running?")
        );
        assert_eq!(traces(folder.path()), before);
        assert_eq!(traces(other.path()), before_other);
        helper.stop();
    });
}

#[test]
fn a_socket_path_that_cannot_be_used_is_named() {
    on_own_host(
        "refusals::a_socket_path_that_cannot_be_used_is_named",
        || {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("helper.sock"), "").unwrap();
            let before = traces(folder.path());
            assert!(
                refused(folder.path(), "--network dhcp=off", 1)
                    .contains("helper.sock exists and is not a socket")
            );
            assert_eq!(traces(folder.path()), before);

            std::fs::remove_file(folder.path().join("helper.sock")).unwrap();
            let somebody = UnixListener::bind(folder.path().join("helper.sock")).unwrap();
            assert!(
                refused(folder.path(), "--network dhcp=off", 1)
                    .contains("in use by another process")
            );
            drop(somebody);
            // A socket left by a program that has died is replaced.
            Helper::start(folder.path(), "--network dhcp=off").stop();
        },
    );
}

#[test]
fn dns_ports_in_use_are_what_dnsmasq_says() {
    on_own_host("refusals::dns_ports_in_use_are_what_dnsmasq_says", || {
        let folder = tempfile::tempdir().unwrap();
        let before = traces(folder.path());
        let somebody = std::net::UdpSocket::bind("0.0.0.0:53").unwrap();
        let line = refused(folder.path(), "", 1);
        assert!(
            line.contains("dnsmasq: failed to create listening socket for 192.168.124.1"),
            "{line}"
        );
        drop(somebody);
        assert_eq!(traces(folder.path()), before);
    });
}

#[test]
fn command_lines_that_make_no_sense_are_usage_errors() {
    on_own_host(
        "refusals::command_lines_that_make_no_sense_are_usage_errors",
        || {
            let folder = tempfile::tempdir().unwrap();
            for (options, why) in [
                (
                    "--network subnet=192.168.124.1/24",
                    "did you mean 192.168.124.0/24?",
                ),
                ("--network bridge=abcdefghijklmnop", "longer than 15 bytes"),
                ("--network mode=magic", "mode=magic"),
                ("--network a --network a", "given twice"),
                ("--frobnicate", "--frobnicate"),
            ] {
                let line = refused(folder.path(), options, 2);
                assert!(line.contains(why), "{line}");
            }
        },
    );
}

#[test]
fn without_privilege_it_says_what_it_needs() {
    on_own_host("refusals::without_privilege_it_says_what_it_needs", || {
        let program = env!("CARGO_BIN_EXE_bulkhead-net-helper");
        let out = crate::host::attempt(&format!(
            "setpriv --bounding-set -net_admin --inh-caps -net_admin {program} --socket-path /nowhere/x"
        ));
        let line = String::from_utf8_lossy(&out.stderr);
        assert_eq!(
            line,
            "error: bulkhead-net-helper needs CAP_NET_ADMIN: run it as root\n"
        );
        assert_eq!(out.status.code(), Some(1));
    });
}
