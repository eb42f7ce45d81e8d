//! The host's address on a network answers that network's guests and the host itself, and nobody else.

use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use bulkhead_net_protocol::TapRequest;

use crate::host::{Guest, Helper, Machine, on_own_host, run, world};

const NETWORKS: &str = "--network name=nat \
    --network name=island,bridge=island0,subnet=10.78.0.0/24,mode=isolated \
    --network name=lab,bridge=lab0,subnet=10.77.0.0/24,mode=routed";

/// Each network, a guest's address there, and the host's.
const ADDRESSES: [(&str, &str, &str); 3] = [
    ("nat", "192.168.124.9", "192.168.124.1"),
    ("island", "10.78.0.9", "10.78.0.1"),
    ("lab", "10.77.0.9", "10.77.0.1"),
];

/// `version.bind`, which dnsmasq answers by itself.
const QUESTION: &[u8] = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x07version\x04bind\0\0\x10\0\x03";

/// Whether DNS answers at an address within that time, by UDP and by TCP.
fn answers(address: &str, patience: Duration) -> [bool; 2] {
    let server: SocketAddr = format!("{address}:53").parse().unwrap();
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.set_read_timeout(Some(patience)).unwrap();
    socket.connect(server).unwrap();
    let udp = socket
        .send(QUESTION)
        .and_then(|_| socket.recv(&mut [0; 512]));
    [
        udp.is_ok(),
        TcpStream::connect_timeout(&server, patience).is_ok(),
    ]
}

/// How many packets an outside machine has received from this host: none may arrive, neither an answer nor an error.
fn heard(world: &Machine) -> String {
    let text = world.run("nft list counter inet seen heard");
    let mut words = text.split_whitespace().skip_while(|w| *w != "packets");
    words.nth(1).unwrap().to_owned()
}

fn listen_in(world: &Machine) {
    world.run("nft add table inet seen");
    world.run("nft add chain inet seen inward '{ type filter hook prerouting priority -300; }'");
    world.run("nft add counter inet seen heard");
    world.run("nft add rule inet seen inward meta nfproto ipv4 iifname outside counter name heard");
}

/// Asks from everywhere, and from where nobody may.
fn check(moment: &str, world: &Machine, guests: &[Guest], dhcp: bool) {
    for (guest, (network, _, own)) in guests.iter().zip(ADDRESSES) {
        let long = Duration::from_secs(10);
        if dhcp {
            let from_guest = guest.machine.within(move || answers(own, long));
            assert_eq!(from_guest, [true; 2], "{moment}: a guest of {network}");
            assert_eq!(
                answers(own, long),
                [true; 2],
                "{moment}: the host, {network}"
            );
        }
        let short = Duration::from_millis(300);
        let from_world = world.within(move || answers(own, short));
        assert_eq!(from_world, [false; 2], "{moment}: the world, {network}");
        let refused = world.attempt(&format!("ping -c 1 -W 1 {own}"));
        assert!(!refused.status.success(), "{moment}: the world, {network}");
        // A port that nobody listens on.
        let _ = world.udp("203.0.113.2:0").send_to(b"x", (own, 7999));
        for (_, _, other) in ADDRESSES.into_iter().filter(|a| a.0 != network) {
            let across = guest.machine.within(move || answers(other, short));
            assert_eq!(across, [false; 2], "{moment}: {network} to {other}");
        }
    }
    assert_eq!(heard(world), "0", "{moment}: packets to the world");
}

#[test]
fn a_networks_own_address_answers_its_guests_and_the_host_alone() {
    on_own_host(
        "gateways::a_networks_own_address_answers_its_guests_and_the_host_alone",
        || {
            let folder = tempfile::tempdir().unwrap();
            let world = world();
            for subnet in ["192.168.124.0/24", "10.78.0.0/24", "10.77.0.0/24"] {
                world.run(&format!("ip route add {subnet} via 203.0.113.1"));
            }
            let helper = Helper::start(folder.path(), NETWORKS);
            let guests = ADDRESSES.map(|(network, guest, own)| {
                let made = Guest::new(&helper, &TapRequest::on(network));
                made.machine
                    .run(&format!("ip addr add {guest}/24 dev eth0"));
                made.machine.run(&format!("ip route add default via {own}"));
                made
            });
            world.run("ping -c 1 -W 5 203.0.113.1");
            listen_in(&world);

            check("start", &world, &guests, true);
            helper.kill();
            check("killed", &world, &guests, false);
            let helper = Helper::start(folder.path(), NETWORKS);
            check("started again", &world, &guests, true);

            // What the host itself asks from there is answered, where the network is not isolated.
            run("ping -c 1 -W 5 -I 192.168.124.1 203.0.113.2");
            run("ping -c 1 -W 5 -I 10.77.0.1 203.0.113.2");
            helper.stop();
        },
    );
}
