//! What must not pass does not pass, whatever becomes of the helper and of its rules: every kind of forbidden packet is
//! sent all the time, and counted where it must not arrive.

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use bulkhead_net_protocol::TapRequest;
use rustix::process::Signal;

use crate::host::{
    Guest, Helper, Machine, attempt, eventually, mac, on_own_host, refused, run, world,
};

pub(crate) const NETWORKS: &str = "--network name=nat,dhcp=off \
    --network name=island,bridge=island0,subnet=10.78.0.0/24,mode=isolated,dhcp=off \
    --network name=lab,bridge=lab0,subnet=10.77.0.0/24,mode=routed,dhcp=off \
    --network name=lan,bridge=br7,mode=bridge";

/// None of those.
const OTHER_NETWORKS: &str = "--network name=other,bridge=other0,subnet=10.76.0.0/24,dhcp=off";

/// Sends one packet on each flow every millisecond or so.
pub(crate) struct Senders {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Senders {
    fn start(flows: Vec<(UdpSocket, &'static str)>) -> Senders {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            for (socket, _) in &flows {
                socket.set_nonblocking(true).unwrap();
            }
            while !stopped.load(Ordering::Relaxed) {
                for (socket, to) in &flows {
                    // An error is of an earlier packet: somebody has refused it.
                    let _ = socket.send_to(b"x", to);
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        Senders {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Senders {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Packets that arrive at a socket of this host, which no firewall's counter sees.
fn arrivals(address: &str) -> Arc<AtomicU64> {
    let socket = UdpSocket::bind(address).unwrap();
    let count = Arc::new(AtomicU64::new(0));
    let counted = count.clone();
    std::thread::spawn(move || {
        while socket.recv(&mut [0; 64]).is_ok() {
            counted.fetch_add(1, Ordering::Relaxed);
        }
    });
    count
}

/// Sends back what arrives.
fn answer(socket: UdpSocket) {
    std::thread::spawn(move || {
        while let Ok((_, from)) = socket.recv_from(&mut [0; 64]) {
            let _ = socket.send_to(b"x", from);
        }
    });
}

/// Has a machine count the packets that come in there, by what they are.
fn count(machine: &Machine, what: &[(&str, &str)]) {
    machine.run("nft add table inet seen");
    machine.run("nft add chain inet seen inward '{ type filter hook prerouting priority -300; }'");
    machine.run("nft add rule inet seen inward iifname lo accept");
    for (name, packet) in what {
        machine.run(&format!("nft add counter inet seen {name}"));
        machine.run(&format!(
            "nft add rule inet seen inward {packet} counter name {name}"
        ));
    }
}

fn counted(machine: &Machine) -> BTreeMap<String, u64> {
    let text = machine.run("nft list counters table inet seen");
    let mut counters = BTreeMap::new();
    let mut name = String::new();
    for line in text.lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        match words[..] {
            ["counter", counter, "{"] => name = counter.to_owned(),
            ["packets", packets, "bytes", _] => {
                counters.insert(name.clone(), packets.parse().unwrap());
            }
            _ => {}
        }
    }
    counters
}

/// A host with a machine on each side, a bridge of its own, and the guests of all four networks.
pub(crate) struct Scene {
    world: Machine,
    inner: Machine,
    pub(crate) nat: Guest,
    pub(crate) island: Guest,
    pub(crate) lab: Guest,
    pub(crate) lan: Guest,
    at_gateway: Arc<AtomicU64>,
    at_uplink: Arc<AtomicU64>,
    from_elsewhere: Arc<AtomicU64>,
    as_a_guest: Arc<AtomicU64>,
    on_lan: Arc<AtomicU64>,
}

/// Two sides of a host that does not route between them.
pub(crate) fn two_sides() -> (Machine, Machine) {
    let world = world();
    for route in [
        "192.168.124.0/24",
        "10.78.0.0/24",
        "10.77.0.0/24",
        "198.51.100.0/24",
    ] {
        world.run(&format!("ip route add {route} via 203.0.113.1"));
    }
    world.run("ip -6 addr add 2001:db8:1::2/64 dev outside nodad");
    world.run("ip -6 route add 2001:db8:9::/64 via 2001:db8:1::1");
    run(
        "ip -6 addr add 2001:db8:1::1/64 dev uplink nodad; sysctl -qw net.ipv6.conf.all.forwarding=1",
    );
    let inner = Machine::new();
    run(
        "ip link add downlink type veth peer name inside && ip addr add 198.51.100.1/24 dev downlink && ip link set downlink up",
    );
    inner.take("inside");
    inner.run("ip addr add 198.51.100.2/24 dev inside");
    inner.run("ip link set inside up");
    inner.run("ip route add default via 198.51.100.1");
    run("ip link add br7 type bridge && ip addr add 10.7.0.1/24 dev br7 && ip link set br7 up");
    count(
        &world,
        &[
            ("forbidden_island", "udp dport 7001"),
            (
                "forbidden_unmasked",
                "ip saddr { 192.168.124.0/24, 10.78.0.0/24 }",
            ),
            ("forbidden_spoofed", "ip saddr 10.99.0.9"),
            ("forbidden_others_source", "udp dport { 7005, 7007 }"),
            ("forbidden_ipv6", "ip6 saddr 2001:db8:9::/64"),
            ("forbidden_lan", "udp dport 7008"),
            ("nat", "ip saddr 203.0.113.1 udp dport 7002"),
            ("routed", "ip saddr 10.77.0.9 udp dport 7004"),
        ],
    );
    count(&inner, &[("forbidden_inner", "udp dport { 7001, 7007 }")]);
    for machine in [&world, &inner] {
        has_sources(machine, "lo");
    }
    (world, inner)
}

/// An address on each network, for packets that come from where it is not, and the networks.
const SOURCES: [(&str, &str); 3] = [
    ("nat", "192.168.124.77"),
    ("island", "10.78.0.77"),
    ("lab", "10.77.0.77"),
];

/// Lets a machine send with the source addresses of all networks.
fn has_sources(machine: &Machine, interface: &str) {
    for (_, source) in SOURCES {
        machine.run(&format!("ip addr add {source}/32 dev {interface}"));
    }
}

/// Packets that a machine, or a guest of a network, sends with the source addresses of other networks: to the host, to
/// the host's address on a network, and to where it routes. Some must be answered on the way, if they are routed.
fn spoofed(machine: &Machine, network: &str) -> Vec<(UdpSocket, &'static str)> {
    let mut flows = Vec::new();
    for (_, source) in SOURCES.into_iter().filter(|(own, _)| *own != network) {
        for to in [
            "203.0.113.1:7016",
            "10.77.0.1:7012",
            "10.77.0.9:7006",
            "198.51.100.2:7007",
            "203.0.113.2:7005",
        ] {
            flows.push((machine.udp(&format!("{source}:0")), to));
        }
        // Without the routing rules, the host answers such a packet from a bridge that is not the helper's.
        if network == "lan" {
            continue;
        }
        let dying = machine.udp(&format!("{source}:0"));
        dying.set_ttl(1).unwrap();
        flows.push((dying, "10.77.0.9:7006"));
    }
    flows
}

/// A guest with an address, that sends everything else to a gateway whose hardware address it knows.
fn guest(helper: &Helper, network: &str, address: &str, gateway: &str) -> Guest {
    let guest = Guest::new(helper, &TapRequest::on(network));
    let bridge = &guest.lease.info.bridge;
    let (mac, port) = (mac(bridge), mac(&guest.lease.info.interface));
    let machine = &guest.machine;
    machine.run(&format!("ip addr add {address}/24 dev eth0"));
    machine.run("ip -6 addr add 2001:db8:9::9/64 dev eth0 nodad");
    machine.run(&format!("ip neigh add {gateway} lladdr {} dev eth0", mac));
    machine.run(&format!(
        "ip -6 neigh add 2001:db8:9::1 lladdr {} dev eth0",
        mac
    ));
    machine.run(&format!("ip route add default via {gateway}"));
    machine.run("ip -6 route add default via 2001:db8:9::1");
    // The host's end of the guest's own wire, which would route if it were not a port.
    machine.run(&format!(
        "ip neigh add 10.255.255.1 lladdr {} dev eth0",
        port
    ));
    machine.run("ip route add 198.51.100.0/24 via 10.255.255.1 dev eth0 onlink");
    guest
}

impl Scene {
    pub(crate) fn new(helper: &Helper, (world, inner): (Machine, Machine)) -> Scene {
        let nat = guest(helper, "nat", "192.168.124.9", "192.168.124.1");
        let island = guest(helper, "island", "10.78.0.9", "10.78.0.1");
        let lab = guest(helper, "lab", "10.77.0.9", "10.77.0.1");
        let lan = guest(helper, "lan", "10.7.0.9", "10.7.0.1");
        let answered = "icmp type { echo-reply, time-exceeded, parameter-problem }";
        for machine in [&nat.machine, &island.machine] {
            count(machine, &[("forbidden_entry", "udp dport { 7003, 7006 }")]);
        }
        count(
            &lab.machine,
            &[
                ("entry", "udp dport 7003"),
                ("answer", "ip saddr 10.7.0.9 udp sport 7015"),
                ("forbidden_entry", "udp dport 7006"),
            ],
        );
        for guest in [&nat, &island, &lab] {
            let rule = format!("nft add rule inet seen inward {answered} counter name");
            guest
                .machine
                .run("nft add counter inet seen forbidden_answer");
            guest.machine.run(&format!("{rule} forbidden_answer"));
        }
        for guest in [&nat, &island, &lab, &lan] {
            has_sources(&guest.machine, "eth0");
            guest.machine.run("ip addr add 10.99.0.9/32 dev eth0");
        }
        answer(lan.machine.udp("10.7.0.9:7015"));
        Scene {
            at_gateway: arrivals("10.78.0.1:7011"),
            at_uplink: arrivals("203.0.113.1:7010"),
            from_elsewhere: arrivals("0.0.0.0:7012"),
            as_a_guest: arrivals("203.0.113.1:7016"),
            on_lan: arrivals("10.7.0.1:7009"),
            world,
            inner,
            nat,
            island,
            lab,
            lan,
        }
    }

    pub(crate) fn send(&self) -> Senders {
        let Scene {
            nat,
            island,
            lab,
            lan,
            world,
            ..
        } = self;
        let from = |guest: &Guest, address: &str| guest.machine.udp(address);
        let mut flows = vec![
            // What must not pass.
            (from(island, "10.78.0.9:0"), "203.0.113.2:7001"),
            (from(island, "10.78.0.9:0"), "198.51.100.2:7001"),
            (from(island, "10.78.0.9:0"), "192.168.124.9:7006"),
            (from(island, "10.78.0.9:0"), "203.0.113.1:7010"),
            (from(island, "[2001:db8:9::9]:0"), "[2001:db8:1::2]:7001"),
            (from(nat, "[2001:db8:9::9]:0"), "[2001:db8:1::2]:7001"),
            (from(nat, "10.99.0.9:0"), "203.0.113.2:7005"),
            (from(island, "10.99.0.9:0"), "203.0.113.2:7005"),
            (from(island, "10.99.0.9:0"), "10.77.0.9:7006"),
            (from(island, "10.99.0.9:0"), "203.0.113.1:7010"),
            (from(lab, "10.99.0.9:0"), "203.0.113.2:7005"),
            (from(lab, "[2001:db8:9::9]:0"), "[2001:db8:1::2]:7001"),
            (from(nat, "192.168.124.9:0"), "10.78.0.9:7006"),
            (from(lan, "10.7.0.9:0"), "203.0.113.2:7008"),
            (from(lan, "10.7.0.9:0"), "198.51.100.2:7001"),
            (world.udp("203.0.113.2:0"), "192.168.124.9:7003"),
            (world.udp("203.0.113.2:0"), "10.78.0.9:7003"),
            (world.udp("203.0.113.2:0"), "198.51.100.2:7007"),
            (world.udp("203.0.113.2:0"), "192.168.124.1:7012"),
            (world.udp("203.0.113.2:0"), "10.78.0.1:7012"),
            (world.udp("203.0.113.2:0"), "10.77.0.1:7012"),
            (world.udp("203.0.113.2:0"), "10.78.0.255:7012"),
            (from(nat, "192.168.124.9:0"), "10.78.0.1:7012"),
            (from(lan, "10.7.0.9:0"), "10.78.0.1:7012"),
            (from(lan, "10.7.0.9:0"), "10.77.0.9:7006"),
            (from(lan, "10.7.0.9:0"), "10.78.0.9:7006"),
            (from(lan, "10.7.0.9:0"), "192.168.124.9:7006"),
            // What must.
            (from(nat, "192.168.124.9:0"), "203.0.113.2:7002"),
            (from(lab, "10.77.0.9:0"), "203.0.113.2:7004"),
            (world.udp("203.0.113.2:0"), "10.77.0.9:7003"),
            (from(island, "10.78.0.9:0"), "10.78.0.1:7011"),
            (from(lan, "10.7.0.9:0"), "10.7.0.1:7009"),
            (from(lab, "10.77.0.9:0"), "10.7.0.9:7015"),
        ];
        for (machine, network) in [
            (world, "none"),
            (&self.inner, "none"),
            (&lan.machine, "lan"),
            (&nat.machine, "nat"),
            (&island.machine, "island"),
            (&lab.machine, "lab"),
        ] {
            flows.extend(spoofed(machine, network));
        }
        Senders::start(flows)
    }

    /// What has arrived that must, in total, for each of the ways.
    fn allowed(&self) -> [u64; 6] {
        let world = counted(&self.world);
        let lab = counted(&self.lab.machine);
        [
            world["nat"],
            world["routed"],
            lab["entry"],
            lab["answer"],
            self.at_gateway.load(Ordering::Relaxed),
            self.on_lan.load(Ordering::Relaxed),
        ]
    }

    /// Waits until every allowed way has let more through, ten packets on each.
    pub(crate) fn resumes(&self, moment: &str) {
        let before = self.allowed();
        eventually(&format!("{moment}: {before:?} grow"), || {
            let now = self.allowed();
            before
                .iter()
                .zip(now)
                .all(|(before, now)| now >= before + 10)
        });
        self.check(moment);
    }

    pub(crate) fn check(&self, moment: &str) {
        self.check_without_networks(moment);
        assert_eq!(
            self.as_a_guest.load(Ordering::Relaxed),
            0,
            "{moment}: the host, with a guest's address, from elsewhere"
        );
    }

    /// When there are no networks, their addresses are nobody's.
    fn check_without_networks(&self, moment: &str) {
        self.check_routed(moment);
        assert_eq!(
            self.at_uplink.load(Ordering::Relaxed),
            0,
            "{moment}: the host's other addresses"
        );
        assert_eq!(
            self.from_elsewhere.load(Ordering::Relaxed),
            0,
            "{moment}: the host's address on a network, from outside of it"
        );
    }

    /// Nothing forbidden has been routed. What guests may say to the host itself is for the table alone to judge.
    fn check_routed(&self, moment: &str) {
        for machine in [
            &self.world,
            &self.inner,
            &self.nat.machine,
            &self.island.machine,
            &self.lab.machine,
        ] {
            for (name, packets) in counted(machine) {
                assert!(
                    !name.starts_with("forbidden") || packets == 0,
                    "{moment}: {name}: {packets}"
                );
            }
        }
    }

    /// Without the table, guests have reached the host's other addresses, and others those on the networks.
    fn forget_the_host(&self) {
        self.at_uplink.store(0, Ordering::Relaxed);
        self.from_elsewhere.store(0, Ordering::Relaxed);
        self.as_a_guest.store(0, Ordering::Relaxed);
    }

    fn pass_routed(&self, moment: &str) {
        std::thread::sleep(Duration::from_millis(300));
        self.check_routed(moment);
    }

    /// Lets the senders send a few hundred rounds.
    pub(crate) fn pass(&self, moment: &str) {
        std::thread::sleep(Duration::from_millis(300));
        self.check(moment);
    }
}

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

        // An end in order takes the guests' devices.
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

/// Others do their worst while the helper runs.
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

/// The helper is killed, and others do their worst before the next one comes.
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
    scene.pass_routed("killed, table flushed");
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
