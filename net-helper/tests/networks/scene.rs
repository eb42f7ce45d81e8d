//! A host with a network of each mode, outsiders on two sides of it, and senders of every kind of forbidden packet,
//! which are counted where they must not arrive.

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use bulkhead_net_protocol::TapRequest;

use crate::host::{Guest, Helper, Machine, eventually, mac, run, world};

pub(crate) const NETWORKS: &str = "--network name=nat,dhcp=off \
    --network name=island,bridge=island0,subnet=10.78.0.0/24,mode=isolated,dhcp=off \
    --network name=lab,bridge=lab0,subnet=10.77.0.0/24,mode=routed,dhcp=off \
    --network name=lan,bridge=br7,mode=bridge";

/// Sends one packet on each flow every millisecond or so.
pub(crate) struct Senders {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Senders {
    pub(crate) fn start(flows: Vec<(UdpSocket, &'static str)>) -> Senders {
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
pub(crate) fn arrivals(address: &str) -> Arc<AtomicU64> {
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
pub(crate) fn count(machine: &Machine, what: &[(&str, &str)]) {
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

pub(crate) fn counted(machine: &Machine) -> BTreeMap<String, u64> {
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

/// An address on each network, as the source of packets that come from elsewhere.
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

    /// The same while there are no networks: then their addresses mean nothing.
    pub(crate) fn check_without_networks(&self, moment: &str) {
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

    /// Nothing forbidden has been routed. What goes to the host itself does not count: only the table drops that, and
    /// not the routing rules.
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
    pub(crate) fn forget_the_host(&self) {
        self.at_uplink.store(0, Ordering::Relaxed);
        self.from_elsewhere.store(0, Ordering::Relaxed);
        self.as_a_guest.store(0, Ordering::Relaxed);
    }

    pub(crate) fn pass_routed(&self, moment: &str) {
        std::thread::sleep(Duration::from_millis(300));
        self.check_routed(moment);
    }

    /// The table is flushed, and no helper restores it: nothing at all is routed, and guests reach the host.
    pub(crate) fn routes_nothing(&self, moment: &str) {
        let routed = || {
            let [routed @ .., _, _] = self.allowed();
            routed
        };
        // What had been routed before may be on its way.
        eventually(&format!("{moment}: nothing is routed"), || {
            let before = routed();
            let [.., at_gateway, _] = self.allowed();
            eventually(&format!("{moment}: guests reach the host"), || {
                let [.., now, _] = self.allowed();
                now >= at_gateway + 100
            });
            routed() == before
        });
        self.check_routed(moment);
    }

    /// Lets the senders send a few hundred rounds.
    pub(crate) fn pass(&self, moment: &str) {
        std::thread::sleep(Duration::from_millis(300));
        self.check(moment);
    }
}
