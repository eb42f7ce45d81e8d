//! Drivers that break the rules: the process lives, says so, and serves the rings that are in order.

use tap::Offloads;

use crate::guest::{Guest, LARGE, MERGED, readable};
use crate::wire::{Net, PATIENCE, Peer, body, frame, in_own_namespace, same};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// What is wrong with a chain, and its descriptors: address, length, flags, next.
type Broken<'a> = (&'a str, &'a [(u64, u32, u16, u16)]);

/// Descriptor chains that no device should follow, each from descriptor 0 on.
const CHAINS: &[Broken<'_>] = &[
    ("beyond memory", &[(0x7fff_ffff_0000, 2048, WRITE, 0)]),
    (
        "around the end of the address space",
        &[(u64::MAX - 10, 2048, WRITE, 0)],
    ),
    (
        "a loop",
        &[
            (0x40_0000, 100, NEXT | WRITE, 1),
            (0x40_0000, 100, NEXT | WRITE, 0),
        ],
    ),
    (
        "next is not in the table",
        &[(0x40_0000, 100, NEXT | WRITE, 999)],
    ),
    (
        "an indirect table that is no table",
        &[(0x40_0000, 7, INDIRECT, 0)],
    ),
    ("an empty descriptor", &[(0x40_0000, 0, WRITE, 0)]),
    (
        "readable after writable",
        &[(0x40_0000, 100, NEXT | WRITE, 1), (0x40_0000, 100, 0, 0)],
    ),
];

#[test]
fn a_broken_receive_ring_is_put_aside_and_sending_goes_on() {
    in_own_namespace(
        "hostile::a_broken_receive_ring_is_put_aside_and_sending_goes_on",
        || {
            let too_small: &[Broken<'_>] = &[
                ("smaller than a header", &[(0x40_0000, 11, WRITE, 0)]),
                ("nothing to write to", &[(0x40_0000, 2048, 0, 0)]),
            ];
            let net = Net::start("--persist");
            let peer = Peer::new(Offloads::empty());
            for (what, chain) in CHAINS.iter().chain(too_small) {
                let mut guest = Guest::connect(&net, MERGED | LARGE, 2);
                offer(&mut guest, 0, chain);
                peer.send(&frame(1, 100));
                assert!(readable(&guest.rings[0].err, PATIENCE), "{what}");
                assert_eq!(guest.used_index(0), 0, "{what}");
                let sent = frame(2, 100);
                guest.send(&sent, &[]);
                same(&peer.receive(), &sent);
            }
        },
    );
}

#[test]
fn a_broken_transmit_ring_is_put_aside_and_receiving_goes_on() {
    in_own_namespace(
        "hostile::a_broken_transmit_ring_is_put_aside_and_receiving_goes_on",
        || {
            let net = Net::start("--persist");
            let peer = Peer::new(Offloads::empty());
            for (what, chain) in CHAINS {
                let mut guest = Guest::connect(&net, MERGED | LARGE, 2);
                offer(&mut guest, 1, chain);
                assert!(readable(&guest.rings[1].err, PATIENCE), "{what}");
                guest.post_receive(0, 4, 2048);
                let sent = frame(3, 100);
                peer.send(&sent);
                same(&guest.receive(0), &sent);
            }
        },
    );
}

fn offer(guest: &mut Guest, ring: usize, chain: &[(u64, u32, u16, u16)]) {
    for (index, &words) in chain.iter().enumerate() {
        guest.put_descriptor(ring, index as u16, words);
    }
    guest.offer(ring, 0);
    guest.rings[ring].kick.write(1).unwrap();
}

#[test]
fn rings_full_of_random_bytes_end_nothing() {
    in_own_namespace("hostile::rings_full_of_random_bytes_end_nothing", || {
        let net = Net::start("--persist --num-queues 2");
        let peer = Peer::new(Offloads::empty());
        let mut seed = 0x2545_f491_4f6c_dd1du64;
        let mut random = || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed
        };
        for round in 0..40 {
            let mut guest = Guest::connect(&net, MERGED | LARGE | crate::guest::SEVERAL, 5);
            for ring in 0..5 {
                for descriptor in 0..256 {
                    // Mostly in memory, mostly of some length: chains that begin well.
                    let address = if random() % 8 == 0 {
                        random()
                    } else {
                        random() % (60 << 20)
                    };
                    let length = if random() % 8 == 0 {
                        random() as u32
                    } else {
                        random() as u32 % 4096
                    };
                    let words = (address, length, random() as u16 & 7, random() as u16 % 300);
                    guest.put_descriptor(ring, descriptor, words);
                }
                for _ in 0..random() % 64 {
                    let head = random() as u16 % 260;
                    guest.offer(ring, head);
                }
                guest.rings[ring].kick.write(1).unwrap();
            }
            for _ in 0..4 {
                peer.send(&frame(round, 1000));
            }
            // A message that is answered: everything before it has been looked at.
            guest.config(10);
            guest.config(10);
        }
        let mut polite = Guest::connect(&net, MERGED, 2);
        polite.post_receive(0, 250, 2048);
        peer.send(&frame(200, 700));
        while body(&polite.receive(0)) != body(&frame(200, 700)) {}
        drop(polite);
        rustix::process::kill_process(
            rustix::process::Pid::from_child(&net.child),
            rustix::process::Signal::TERM,
        )
        .unwrap();
        let (status, said) = net.end();
        assert_eq!(status.code(), Some(0), "{said}");
        assert!(!said.contains("panicked"), "{said}");
    });
}
