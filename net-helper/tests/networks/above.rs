//! An administrator puts an interface on top of a guest network's bridge: what guests send there, with addresses that
//! are nobody's, does not pass. (Some kernels that these tests run on have no VLANs, so it is a macvlan. The helper
//! treats everything on top of its interfaces alike.)

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bulkhead_net_protocol::TapRequest;

use crate::host::{Guest, Helper, Machine, eventually, mac, on_own_host, run, world};
use crate::scene::{Senders, arrivals, count, counted};

const NETWORKS: &str = "--network dhcp=off \
    --network name=island,bridge=island0,subnet=10.78.0.0/24,mode=isolated,dhcp=off";

/// A guest, the world outside, and packets between them that pass the interface on top.
struct Way {
    world: Machine,
    guest: Guest,
    at_host: Arc<AtomicU64>,
}

impl Way {
    /// `bridge` has no interface on top yet.
    fn new(helper: &Helper, network: &str) -> Way {
        let world = world();
        world.run("ip route add 10.99.0.0/24 via 203.0.113.1");
        count(&world, &[("made_up", "ip saddr 10.99.0.9")]);
        let guest = Guest::new(helper, &TapRequest::on(network));
        count(&guest.machine, &[("entered", "udp dport 7006")]);
        guest.machine.run("ip addr add 10.99.0.9/24 dev eth0");
        Way {
            world,
            guest,
            at_host: arrivals("203.0.113.1:7010"),
        }
    }

    /// Puts an interface on top of the bridge, with an address by which the guest reaches the host.
    fn open(&self) {
        let bridge = &self.guest.lease.info.bridge;
        run(&format!(
            "ip link add link {bridge} name over0 type macvlan mode bridge"
        ));
    }

    /// Gives the interface its address, and both sides each other's.
    fn connect(&self) {
        run("ip addr add 10.99.0.1/24 dev over0 && ip link set over0 up");
        let guest = self.guest.lease.info.mac;
        run(&format!(
            "ip neigh replace 10.99.0.9 lladdr {guest} dev over0"
        ));
        let over = mac("over0");
        let machine = &self.guest.machine;
        machine.run(&format!(
            "ip neigh replace 10.99.0.1 lladdr {over} dev eth0"
        ));
        machine.run("ip route replace default via 10.99.0.1");
    }

    fn send(&self) -> Senders {
        let made_up = || self.guest.machine.udp("10.99.0.9:0");
        Senders::start(vec![
            (made_up(), "203.0.113.2:7005"),
            (made_up(), "203.0.113.1:7010"),
            (self.world.udp("203.0.113.2:0"), "10.99.0.9:7006"),
        ])
    }

    /// What has arrived outside, at the host and at the guest.
    fn arrived(&self) -> [u64; 3] {
        [
            counted(&self.world)["made_up"],
            self.at_host.load(Ordering::Relaxed),
            counted(&self.guest.machine)["entered"],
        ]
    }

    /// Lets the senders send a few hundred packets, of which none may arrive.
    fn is_closed(&self, moment: &str) {
        let before = self.arrived();
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(self.arrived(), before, "{moment}");
    }
}

/// How many rules there are about one interface on top.
const OF_ONE: usize = 4;

/// How many rules there are about single interfaces, by their indices.
fn rules() -> usize {
    let table = run("nft list table inet bulkhead");
    let rules = table.lines().map(str::trim);
    let by_index = rules.filter(|rule| rule.starts_with("iif ") || rule.starts_with("oif "));
    by_index.count()
}

fn closed(network: &str) {
    // The host routes for others as well: whatever reaches it by that interface would leave it.
    run("sysctl -qw net.ipv4.ip_forward=1");
    let folder = tempfile::tempdir().unwrap();
    let helper = Helper::start(folder.path(), NETWORKS);
    let way = Way::new(&helper, network);
    let of_bridges = rules();
    for _ in 0..2 {
        way.open();
        eventually("the rules know the interface", || {
            rules() == of_bridges + OF_ONE
        });
        way.connect();
        let senders = way.send();
        way.is_closed("an interface on top");
        drop(senders);
        run("ip link del over0");
        eventually("the rules forget it", || rules() == of_bridges);
    }
    killed(&way, helper, folder.path(), of_bridges + OF_ONE);
}

/// What is on top while no helper runs is closed by the next one, and what a helper has closed stays so after it.
fn killed(way: &Way, helper: Helper, folder: &Path, closed: usize) {
    helper.kill();
    way.open();
    let helper = Helper::start(folder, NETWORKS);
    assert_eq!(rules(), closed, "the start has looked");
    way.connect();
    let senders = way.send();
    way.is_closed("on top before the start");
    helper.kill();
    way.is_closed("the helper is killed");

    // Without the rules the packets do arrive: the counts above mean something.
    let before = way.arrived();
    run("nft flush ruleset");
    eventually("packets arrive everywhere without the rules", || {
        let now = way.arrived();
        before
            .iter()
            .zip(now)
            .all(|(before, now)| now > before + 10)
    });
    let helper = Helper::start(folder, NETWORKS);
    way.is_closed("started again");
    drop(senders);
    helper.stop();
}

#[test]
fn nothing_passes_an_interface_on_top_of_a_network_with_nat() {
    on_own_host(
        "above::nothing_passes_an_interface_on_top_of_a_network_with_nat",
        || closed("default"),
    );
}

#[test]
fn nothing_passes_an_interface_on_top_of_an_isolated_network() {
    on_own_host(
        "above::nothing_passes_an_interface_on_top_of_an_isolated_network",
        || closed("island"),
    );
}
