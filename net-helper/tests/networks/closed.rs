//! What must not pass does not pass, whatever becomes of the helper and of its rules: every kind of forbidden packet is
//! sent all the time, and counted where it must not arrive.

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;

use crate::host::{Helper, attempt, eventually, mac, on_own_host, refused, run};
use crate::scene::{NETWORKS, Scene, Senders, two_sides};

/// A network that is not one of the scene's.
const OTHER_NETWORKS: &str = "--network name=other,bridge=other0,subnet=10.76.0.0/24,dhcp=off";

const OUR_RULES: &str = "for family in -4 -6; do ip $family rule show | sed -n 's/^\\([1-5]\\):.*/\\1/p' | while read pref; do ip $family rule del pref $pref; done; done";

#[test]
fn nothing_forbidden_passes_at_any_moment() {
    on_own_host("closed::nothing_forbidden_passes_at_any_moment", || {
        let folder = tempfile::tempdir().unwrap();
        run("sysctl -qw net.ipv4.ip_forward=0");
        let sides = two_sides();
        let early = Senders::start(vec![
            (sides.0.udp("203.0.113.2:0"), "192.168.124.9:7003"),
            (sides.0.udp("203.0.113.2:0"), "10.78.0.9:7003"),
            (sides.0.udp("203.0.113.2:0"), "198.51.100.2:7007"),
        ]);
        let helper = Helper::start(folder.path(), NETWORKS);
        let scene = Scene::new(&helper, sides);
        drop(early);
        let senders = scene.send();
        scene.resumes("start");

        with_the_helper(&scene);
        let helper = without_it(&scene, helper, folder.path());

        // A helper that ends in order removes the guests' devices.
        helper.signal(Signal::HUP);
        helper.wait_for_the_end();
        std::thread::sleep(Duration::from_millis(300));
        scene.check_without_networks("stopped");
        assert_eq!(run("cat /proc/sys/net/ipv4/ip_forward").trim(), "0");
        assert!(!run("nft list tables; ip rule").contains("bulkhead"));
        drop(senders);
        scene.check_without_networks("all");
    });
}

/// Others remove rules and bridges, and switch forwarding, while the helper runs.
fn with_the_helper(scene: &Scene) {
    for _ in 0..5 {
        attempt("nft flush ruleset");
        attempt("nft delete table inet bulkhead");
        scene.check("flush");
    }
    scene.resumes("flush");
    run(OUR_RULES);
    scene.resumes("routing rules removed");
    eventually("the routing rules are there again", || {
        run("ip rule").contains("blackhole")
    });
    for on in ["0", "1", "0", "1"] {
        run(&format!("sysctl -qw net.ipv4.ip_forward={on}"));
        scene.pass("forwarding switched by others");
    }
    scene.resumes("forwarding");
    run(
        "sysctl -qw net.ipv4.conf.all.forwarding=1; for i in /proc/sys/net/ipv4/conf/*/forwarding; do echo 1 > $i; done",
    );
    scene.resumes("forwarding of each interface");
    for bridge in ["island0", "bulkhead0", "lab0"] {
        run(&format!("ip link del {bridge}"));
        scene.pass("bridge deleted");
        scene.resumes("bridge deleted");
    }
    run("ip link del br7");
    scene.pass("their bridge deleted");
    run("ip link add br7 type bridge && ip addr add 10.7.0.1/24 dev br7 && ip link set br7 up");
    // A bridge has the hardware address of one of its ports: it changes once more when they are there.
    let port = &scene.lan.lease.info.interface;
    eventually("the guest's device is on the bridge", || {
        run("ip -o link show master br7").contains(port)
    });
    let lan = scene.lan.machine.run("ip neigh show 10.7.0.1");
    assert!(lan.contains("PERMANENT"), "{lan}");
    let mac = mac("br7");
    scene.lan.machine.run(&format!(
        "ip neigh replace 10.7.0.1 lladdr {} dev eth0",
        mac
    ));
    scene.resumes("their bridge made again");
}

/// The helper is killed, and others do the same before the next one starts.
fn without_it(scene: &Scene, helper: Helper, folder: &Path) -> Helper {
    helper.kill();
    scene.resumes("killed");
    let helper = Helper::start(folder, NETWORKS);
    scene.resumes("started again");

    helper.kill();
    for on in ["0", "1"] {
        run(&format!("sysctl -qw net.ipv4.ip_forward={on}"));
        scene.pass("killed, forwarding switched by others");
    }
    scene.resumes("killed, forwarding on again");
    run(OUR_RULES);
    assert!(!run("ip rule").contains("blackhole"));
    scene.resumes("killed, routing rules removed");
    let helper = Helper::start(folder, NETWORKS);
    scene.resumes("started again without routing rules");

    helper.kill();
    run("nft flush ruleset");
    scene.routes_nothing("killed, table flushed");
    let helper = Helper::start(folder, NETWORKS);
    scene.forget_the_host();
    scene.resumes("started again without a table");

    let helper = bridges_deleted(scene, helper, folder);

    helper.kill();
    let taken = UnixListener::bind(folder.join("taken.sock")).unwrap();
    let elsewhere = format!(
        "{NETWORKS} --socket-path {}",
        folder.join("taken.sock").display()
    );
    Helper::fail(folder, &elsewhere);
    drop(taken);
    scene.resumes("the next one has failed");
    let helper = Helper::start(folder, NETWORKS);
    scene.resumes("the one after that");

    helper.kill();
    let helper = Helper::start(folder, OTHER_NETWORKS);
    scene.resumes("started again with other networks");
    helper.kill();
    run("nft flush ruleset");
    let helper = Helper::start(folder, OTHER_NETWORKS);
    scene.forget_the_host();
    scene.resumes("started again with other networks and without a table");
    helper.kill();
    let in_the_way = "--network name=nat,dhcp=off,subnet=10.6.0.0/24";
    let error = refused(folder, in_the_way, 1);
    assert!(
        error.contains("guests are on network nat")
            && error.contains("subnet=192.168.124.0/24,dhcp=off"),
        "{error}"
    );
    scene.resumes("the next one would have been in the way");
    let helper = Helper::start(folder, NETWORKS);
    scene.resumes("started again with the first networks");
    helper
}

/// Bridges are deleted while no helper runs, with the rules and without.
fn bridges_deleted(scene: &Scene, mut helper: Helper, folder: &Path) -> Helper {
    let delete = "ip link del bulkhead0; ip link del island0; ip link del lab0";
    let moments = [
        ("bridges deleted", delete.to_owned()),
        (
            "bridges deleted, routing rules removed",
            format!("{delete}; {OUR_RULES}"),
        ),
        (
            "bridges deleted, table flushed",
            format!("{delete}; nft flush ruleset"),
        ),
    ];
    for networks in [NETWORKS, OTHER_NETWORKS] {
        for (moment, command) in &moments {
            helper.kill();
            run(command);
            scene.pass_routed(moment);
            helper = Helper::start(folder, networks);
            scene.forget_the_host();
            scene.resumes(&format!("{moment}, started again with {networks}"));
        }
    }
    helper
}
