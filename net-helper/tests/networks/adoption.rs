//! The helper is killed while guests run, others remove or rename things, and the next helper takes over what is left.

use bulkhead_net_protocol::TapRequest;

use crate::host::{Guest, Helper, attempt, eventually, mac, on_own_host, refused, run, traces};

const NETWORKS: &str = "--network dhcp=off \
    --network name=lan,bridge=br7,mode=bridge \
    --network name=lab,bridge=lab0,subnet=10.5.0.0/24,mode=routed,dhcp=off";

/// A network that has nothing in common with those.
const OTHER: &str = "--network name=other,bridge=other0,subnet=10.9.0.0/24,dhcp=off";

fn own_bridge() {
    run("ip link add br7 type bridge && ip addr add 10.7.0.1/24 dev br7 && ip link set br7 up");
}

fn guest(helper: &Helper, network: &str, address: &str) -> Guest {
    let guest = Guest::new(helper, &TapRequest::on(network));
    let command = format!("ip addr add {address}/24 dev eth0");
    guest.machine.run(&command);
    guest
}

/// The names of the TAP devices of this host that are named as the helper names them.
fn taps() -> Vec<String> {
    let links = run("ip -o link");
    let names = links
        .lines()
        .filter_map(|line| line.split([' ', ':', '@']).nth(2));
    let made = names.filter(|name| name.starts_with("bhtap"));
    let mut made: Vec<_> = made.map(str::to_owned).collect();
    made.sort();
    made
}

fn interface(guest: &Guest) -> String {
    guest.lease.info.interface.clone()
}

#[test]
fn guests_whose_bridges_were_deleted_before_the_next_run_are_on_the_new_ones() {
    on_own_host(
        "adoption::guests_whose_bridges_were_deleted_before_the_next_run_are_on_the_new_ones",
        || {
            let folder = tempfile::tempdir().unwrap();
            let before = traces(folder.path());
            own_bridge();
            let helper = Helper::start(folder.path(), NETWORKS);
            let [a, b] = ["192.168.124.8", "192.168.124.9"].map(|ip| guest(&helper, "default", ip));
            let lan = guest(&helper, "lan", "10.7.0.9");
            let lab = guest(&helper, "lab", "10.5.0.9");
            let all_reach = |when: &str| {
                assert!(
                    a.can_ping("192.168.124.9") && b.can_ping("192.168.124.1"),
                    "{when}"
                );
                assert!(
                    lan.can_ping("10.7.0.1") && lab.can_ping("10.5.0.1"),
                    "{when}"
                );
            };
            all_reach("start");
            let addresses = ["bulkhead0", "lab0"].map(mac);

            // The second command line has none of these networks.
            let mut helper = helper;
            for options in [NETWORKS, OTHER, NETWORKS] {
                helper.kill();
                run("ip link del bulkhead0; ip link del lab0; ip link del br7");
                own_bridge();
                assert!(!a.can_ping("192.168.124.9"));
                helper = Helper::start(folder.path(), options);
                assert_eq!(["bulkhead0", "lab0"].map(mac), addresses, "{options}");
                all_reach(options);
            }
            // A guest that comes now reaches them.
            let late = guest(&helper, "default", "192.168.124.7");
            assert!(late.can_ping("192.168.124.9"));
            assert_eq!(taps().len(), 5);

            helper.stop();
            run("ip link del br7");
            assert_eq!(traces(folder.path()), before);
        },
    );
}

#[test]
fn guests_on_a_bridge_of_another_wait_for_it_and_keep_no_helper_from_starting() {
    on_own_host(
        "adoption::guests_on_a_bridge_of_another_wait_for_it_and_keep_no_helper_from_starting",
        || {
            let folder = tempfile::tempdir().unwrap();
            own_bridge();
            let mut helper = Helper::start(folder.path(), NETWORKS);
            let lan = guest(&helper, "lan", "10.7.0.9");
            for options in [OTHER, NETWORKS] {
                helper.kill();
                run("ip link del br7");

                helper = Helper::start(folder.path(), options);

                assert!(helper.lease(&TapRequest::on("lan")).is_err());
                own_bridge();
                eventually("the guest is on the bridge", || {
                    run("ip -o link show master br7").contains(&interface(&lan))
                });
                eventually("the guest reaches it", || lan.can_ping("10.7.0.1"));
                helper.lease(&TapRequest::on("lan")).unwrap();
            }
            helper.stop();
            // Without guests, a missing bridge is an error.
            run("ip link del br7");
            let lan = "--network name=lan,bridge=br7,mode=bridge";
            assert!(refused(folder.path(), lan, 1).contains("there is no bridge br7"));
        },
    );
}

/// An earlier version gave its interfaces no alias, so only their names identify them.
#[test]
fn what_an_older_version_has_left_is_taken_over() {
    on_own_host(
        "adoption::what_an_older_version_has_left_is_taken_over",
        || {
            let folder = tempfile::tempdir().unwrap();
            let state = folder.path().join("state");
            let options = format!("--network dhcp=off --state-dir {}", state.display());
            let helper = Helper::start(folder.path(), &options);
            let (old, gone) = (
                guest(&helper, "default", "192.168.124.8"),
                helper.lease(&TapRequest::on("default")).unwrap(),
            );
            let names = [interface(&old), gone.info.interface.clone()];
            helper.kill();
            drop(gone);
            for name in names.iter().map(String::as_str).chain(["bulkhead0"]) {
                run(&format!("ip link set {name} alias ''"));
            }
            let file = state.join("state.json");
            let text = std::fs::read_to_string(&file).unwrap();
            let (before, _) = text.split_once(",\"owner\"").unwrap();
            std::fs::write(&file, format!("{before}}}")).unwrap();

            let helper = Helper::start(folder.path(), &options);

            assert_eq!(taps(), names[..1]);
            assert!(old.can_ping("192.168.124.1"));
            // The interfaces have aliases from then on.
            helper.kill();
            run("ip link del bulkhead0");
            let helper = Helper::start(folder.path(), &options);
            assert!(old.can_ping("192.168.124.1"));
            helper.stop();
            assert!(taps().is_empty());
        },
    );
}

#[test]
fn bridges_deleted_while_no_helper_runs_and_guests_that_end_meanwhile_leave_nothing() {
    on_own_host(
        "adoption::bridges_deleted_while_no_helper_runs_and_guests_that_end_meanwhile_leave_nothing",
        || {
            let folder = tempfile::tempdir().unwrap();
            own_bridge();
            let before = traces(folder.path());
            for options in [NETWORKS, OTHER] {
                let helper = Helper::start(folder.path(), NETWORKS);
                let guests = [
                    guest(&helper, "default", "192.168.124.8"),
                    guest(&helper, "lan", "10.7.0.9"),
                ];
                helper.kill();
                run("ip link del bulkhead0");
                drop(guests);
                eventually("the guests have ended", || {
                    !run("ip -o link | grep bhtap").contains("LOWER_UP")
                });
                assert_eq!(taps().len(), 2, "nobody is there to remove them");

                let helper = Helper::start(folder.path(), options);

                assert_eq!(taps(), [""; 0], "{options}");
                helper.stop();
                assert_eq!(traces(folder.path()), before);
            }
        },
    );
}

#[test]
fn a_device_goes_with_its_client_also_when_another_helper_has_made_it() {
    on_own_host(
        "adoption::a_device_goes_with_its_client_also_when_another_helper_has_made_it",
        || {
            let folder = tempfile::tempdir().unwrap();
            let helper = Helper::start(folder.path(), "--network dhcp=off");
            let [a, b] = ["192.168.124.8", "192.168.124.9"].map(|ip| guest(&helper, "default", ip));
            helper.kill();
            let helper = Helper::start(folder.path(), "--network dhcp=off");
            let late = guest(&helper, "default", "192.168.124.7");
            let rest = [interface(&b), interface(&late)];

            drop(a);

            eventually("its device is gone", || taps() == rest);
            assert!(b.can_ping("192.168.124.7"));
            // The helper does not fail when somebody else has removed a device.
            run(&format!("ip link del {}", rest[0]));
            drop(late);
            eventually("all devices are gone", || taps().is_empty());
            helper.stop();
        },
    );
}

#[test]
fn what_others_have_made_under_the_names_of_ours_is_left_alone() {
    on_own_host(
        "adoption::what_others_have_made_under_the_names_of_ours_is_left_alone",
        || {
            let folder = tempfile::tempdir().unwrap();
            let helper = Helper::start(folder.path(), "--network dhcp=off");
            let lease = helper.lease(&TapRequest::on("default")).unwrap();
            let name = lease.info.interface.clone();
            helper.kill();
            // The guest has ended, so its TAP device is gone, and another program's device has the name.
            drop(lease);
            run(&format!(
                "ip link del {name} && ip tuntap add {name} mode tap && ip link set {name} master bulkhead0"
            ));
            run("ip tuntap add bhtap99 mode tap");
            for options in [OTHER, "--network dhcp=off"] {
                Helper::start(folder.path(), options).kill();
                assert_eq!(taps(), [name.as_str(), "bhtap99"], "{options}");
            }
            run(&format!("ip link set {name} nomaster"));

            // Another program's bridge has the name of ours, and no guest is on ours.
            run("ip link del bulkhead0 && ip link add bulkhead0 type bridge");
            let theirs = mac("bulkhead0");
            let error = refused(folder.path(), "--network dhcp=off", 1);
            assert!(
                error.contains("interface bulkhead0 exists and is not this program's"),
                "{error}"
            );
            assert_eq!(mac("bulkhead0"), theirs);
            let helper = Helper::start(folder.path(), OTHER);
            helper.stop();
            assert_eq!(mac("bulkhead0"), theirs);
            assert_eq!(taps().len(), 2);
        },
    );
}

#[test]
fn a_bridge_of_another_with_the_name_of_ours_takes_no_guests() {
    on_own_host(
        "adoption::a_bridge_of_another_with_the_name_of_ours_takes_no_guests",
        || {
            let folder = tempfile::tempdir().unwrap();
            let helper = Helper::start(folder.path(), "--network dhcp=off");
            let guest = guest(&helper, "default", "192.168.124.8");
            helper.kill();
            run("ip link del bulkhead0 && ip link add bulkhead0 type bridge");
            let theirs = mac("bulkhead0");

            for options in ["--network dhcp=off", OTHER] {
                let output = attempt_start(folder.path(), options);
                assert!(output.contains("bulkhead0 exists and is not"), "{output}");
            }

            assert_eq!((mac("bulkhead0"), taps().len()), (theirs, 1));
            run("ip link del bulkhead0");
            let helper = Helper::start(folder.path(), "--network dhcp=off");
            assert!(guest.can_ping("192.168.124.1"));
            helper.stop();
            assert!(taps().is_empty());
        },
    );
}

/// Starts a helper that must fail, and returns its standard error.
fn attempt_start(folder: &std::path::Path, options: &str) -> String {
    let program = env!("CARGO_BIN_EXE_bulkhead-net-helper");
    let socket = folder.join("helper.sock");
    let output = attempt(&format!(
        "{program} --socket-path {} {options}",
        socket.display()
    ));
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8(output.stderr).unwrap()
}
