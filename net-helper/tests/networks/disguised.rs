//! What must not pass does not pass when others rename the helper's interfaces, move them or take their marks from
//! them.

use std::path::Path;

use crate::host::{Helper, on_own_host, run};
use crate::scene::{NETWORKS, Scene, two_sides};

#[test]
fn nothing_forbidden_passes_by_an_interface_in_disguise() {
    on_own_host(
        "disguised::nothing_forbidden_passes_by_an_interface_in_disguise",
        || {
            let folder = tempfile::tempdir().unwrap();
            run("sysctl -qw net.ipv4.ip_forward=0");
            let sides = two_sides();
            let helper = Helper::start(folder.path(), NETWORKS);
            let scene = Scene::new(&helper, sides);
            let senders = scene.send();
            scene.resumes("start");

            disguised(&scene);
            let helper = disguised_without_it(&scene, helper, folder.path());
            untranslated(&scene);
            drop(senders);
            scene.check("all");
            helper.stop();
        },
    );
}

/// Bridges that the helper has made, each with a guest's device.
fn own_bridges(scene: &Scene) -> [(&'static str, &str); 3] {
    [
        ("bulkhead0", &scene.nat),
        ("island0", &scene.island),
        ("lab0", &scene.lab),
    ]
    .map(|(bridge, guest)| (bridge, &*guest.lease.info.interface))
}

/// Others give interfaces other names, groups, addresses and places while the helper runs.
fn disguised(scene: &Scene) {
    for (bridge, tap) in own_bridges(scene) {
        for disguise in [
            format!("ip link set {bridge} name isle"),
            format!("ip link set {bridge} name isle group 7 alias nobody"),
            format!("ip link set {bridge} group default"),
            format!("ip addr flush dev {bridge}"),
            format!("ip link set {tap} group default"),
        ] {
            run(&disguise);
            scene.resumes(&disguise);
            let whole = run(&format!("ip -d -o link show {bridge}"));
            assert!(whole.contains("alias bulkhead-net-helper"), "{whole}");
            assert!(!whole.contains("group default"), "{whole}");
        }
        for (there, back) in [
            (
                format!("ip link set {bridge} down"),
                format!("ip link set {bridge} up"),
            ),
            (
                format!("ip link set {tap} nomaster"),
                format!("ip link set {tap} master {bridge}"),
            ),
            (
                format!(
                    "ip link set {tap} nomaster; ip link set {tap} down name other0; ip link set other0 up"
                ),
                format!("ip link set other0 down name {tap}; ip link set {tap} up master {bridge}"),
            ),
        ] {
            run(&there);
            scene.pass(&there);
            run(&back);
            scene.resumes(&back);
        }
    }
    for (bridge, tap) in own_bridges(scene) {
        // A connection of a NAT guest that begins there stays without translation: see `untranslated`.
        if bridge == "bulkhead0" {
            continue;
        }
        run(&format!("ip link set {tap} master br7"));
        scene.pass("a guest's device is on another bridge");
        run(&format!("ip link set {tap} master {bridge}"));
        scene.resumes("a guest's device is back");
    }
    run("ip link set br7 name br8");
    scene.pass("their bridge has another name");
    run("ip link set br8 name br7");
    scene.resumes("their bridge has its name again");
    run("ip link set uplink down name up2; ip link set up2 up");
    scene.pass("uplink renamed");
    run("ip link set up2 down name uplink; ip link set uplink up");
    run("ip -6 addr replace 2001:db8:1::1/64 dev uplink nodad");
    scene.resumes("uplink has its name again");
}

/// If br_netfilter is loaded, the host tracks a connection of a NAT guest whose device is on another bridge, and does
/// not translate it. It stays so when the device is back, and must not leave.
fn untranslated(scene: &Scene) {
    let tap = &scene.nat.lease.info.interface;
    run(&format!("ip link set {tap} master br7"));
    scene.pass("a NAT guest's device is on another bridge");
    run(&format!("ip link set {tap} master bulkhead0"));
    scene.pass("a NAT guest's device is back");
}

/// Others rename bridges while no helper runs, and give their names to other interfaces.
fn disguised_without_it(scene: &Scene, mut helper: Helper, folder: &Path) -> Helper {
    let socket = folder.join("helper.sock");
    let options = format!("{NETWORKS} --socket-path {}", socket.display());
    for (bridge, tap) in own_bridges(scene) {
        for disguise in [
            format!("ip link set {bridge} name isle"),
            format!("ip link set {bridge} name isle alias nobody"),
            format!("ip link set {bridge} group default; ip link set {tap} group default"),
            format!("ip link set {bridge} name isle; ip link set {tap} nomaster"),
        ] {
            helper.kill();
            run(&disguise);
            scene.pass(&disguise);
            helper = Helper::start(folder, NETWORKS);
            scene.resumes(&format!("{disguise}, started again"));
        }
        helper.kill();
        run(&format!(
            "ip link set {bridge} name isle; ip link add {bridge} type bridge; ip link set {bridge} up"
        ));
        scene.pass("another bridge has the name");
        Helper::fail(folder, &options);
        scene.pass("another bridge has the name, the next helper has failed");
        run(&format!(
            "ip link del {bridge}; ip link set uplink down name {bridge}; ip link set {bridge} up"
        ));
        scene.pass("the uplink has the name");
        run(&format!(
            "ip link set {bridge} down name uplink; ip link set uplink up"
        ));
        run("ip -6 addr replace 2001:db8:1::1/64 dev uplink nodad");
        helper = Helper::start(folder, NETWORKS);
        scene.resumes("the name is free again");
    }
    helper.kill();
    run("ip link set br7 name br8");
    scene.pass("their bridge has another name");
    let helper = Helper::start(folder, NETWORKS);
    scene.pass("their bridge has another name, started again");
    run("ip link set br8 name br7");
    scene.resumes("their bridge has its name again");
    helper
}
