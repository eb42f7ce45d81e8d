//! From the wire to the guest.

use std::time::Duration;

use bulkhead_test_frontend::program::processor_time;
use tap::Offloads;

use crate::guest::{Guest, LARGE, MERGED};
use crate::wire::{
    Net, Peer, SEGMENT, carries, data, eventually, frame, in_own_namespace, large_tcp, same,
    tcp_data,
};

/// What Linux offers with merged buffers.
const PAGE_PART: u32 = 1536;

#[test]
fn a_frame_arrives_after_its_header() {
    in_own_namespace("receiving::a_frame_arrives_after_its_header", || {
        let net = Net::start("--persist");
        let peer = Peer::new(Offloads::empty());
        for features in [0, MERGED] {
            let mut guest = Guest::connect(&net, features, 2);
            guest.post_receive(0, 4, 2048);
            let sent = frame(3, 1514);

            peer.send(&sent);

            let got = guest.receive(0);
            same(&got, &sent);
            assert_eq!(got[10..12], [1, 0], "one buffer");
        }
    });
}

#[test]
fn a_large_packet_is_merged_from_as_many_buffers_as_it_needs() {
    in_own_namespace(
        "receiving::a_large_packet_is_merged_from_as_many_buffers_as_it_needs",
        || {
            let net = Net::start("");
            let peer = Peer::new(Offloads::empty());
            let mut guest = Guest::connect(&net, MERGED | LARGE, 2);
            // Small after large and large after small: with as many buffers at hand as the one before needed, more, and
            // fewer.
            for length in [
                60_000, 60_000, 100, 60_000, 1, 3000, 65_000, 1500, 1500, 40_000,
            ] {
                guest.post_receive(0, 48, PAGE_PART);

                peer.send(&large_tcp(length));

                let got = guest.receive(0);
                carries(&got, length);
                let buffers = u16::from_le_bytes([got[10], got[11]]);
                assert_eq!(
                    u32::from(buffers),
                    (66 + length as u32).div_ceil(PAGE_PART),
                    "{length}"
                );
                // Until no buffer is offered.
                while guest.outstanding(0) > 0 {
                    peer.send(&frame(1, 60));
                    guest.receive(0);
                }
            }
        },
    );
}

#[test]
fn large_packets_in_a_row_go_through_a_ring_shorter_than_them_all() {
    in_own_namespace(
        "receiving::large_packets_in_a_row_go_through_a_ring_shorter_than_them_all",
        || {
            let net = Net::start("");
            let peer = Peer::new(Offloads::empty());
            let mut guest = Guest::connect(&net, MERGED | LARGE, 2);
            // Twenty packets of 40 buffers each, in a ring of 256: the end of a turn falls into packets.
            for _ in 0..20 {
                peer.send(&large_tcp(60_000));
            }
            let mut got = 0;
            while got < 20 {
                let free = 250 - guest.outstanding(0);
                guest.post_receive(0, free.into(), PAGE_PART);
                carries(&guest.receive(0), 60_000);
                got += 1;
            }
        },
    );
}

#[test]
fn a_guest_that_takes_no_large_packets_gets_segments() {
    in_own_namespace(
        "receiving::a_guest_that_takes_no_large_packets_gets_segments",
        || {
            let net = Net::start("");
            let peer = Peer::new(Offloads::empty());
            let mut guest = Guest::connect(&net, MERGED, 2);
            guest.post_receive(0, 20, 2048);

            peer.send(&large_tcp(10 * SEGMENT));

            let mut all: Vec<u8> = Vec::new();
            for _ in 0..10 {
                let got = guest.receive(0);
                assert_eq!(got[..2], [0, 0], "finished");
                all.extend(tcp_data(&got));
            }
            assert!(all == data(10 * SEGMENT));
        },
    );
}

#[test]
fn a_guest_without_buffers_costs_nothing_and_loses_nothing_it_has_room_for_later() {
    in_own_namespace(
        "receiving::a_guest_without_buffers_costs_nothing_and_loses_nothing_it_has_room_for_later",
        || {
            let net = Net::start("");
            let peer = Peer::new(Offloads::empty());
            let mut guest = Guest::connect(&net, MERGED | LARGE, 2);
            for number in 0..100 {
                peer.send(&frame(number, 200));
            }
            // Two buffers at first: two frames.
            guest.post_receive(0, 2, PAGE_PART);
            for number in 0..2 {
                same(&guest.receive(0), &frame(number, 200));
            }

            let before = processor_time(&net.child);
            std::thread::sleep(Duration::from_millis(500));
            assert!(
                processor_time(&net.child) - before <= Duration::from_millis(50),
                "it computes while it has nothing to do"
            );

            guest.post_receive(0, 98, PAGE_PART);
            for number in 2..100 {
                same(&guest.receive(0), &frame(number, 200));
            }
        },
    );
}

#[test]
fn a_guest_with_buffers_and_no_traffic_costs_nothing() {
    in_own_namespace(
        "receiving::a_guest_with_buffers_and_no_traffic_costs_nothing",
        || {
            let net = Net::start("");
            let peer = Peer::new(Offloads::empty());
            let mut guest = Guest::connect(&net, MERGED | LARGE, 2);
            // Fewer buffers than the last packet needed, so that all of them are looked at.
            guest.post_receive(0, 60, PAGE_PART);
            peer.send(&large_tcp(60_000));
            guest.receive(0);

            let before = processor_time(&net.child);
            std::thread::sleep(Duration::from_millis(500));

            assert!(
                processor_time(&net.child) - before <= Duration::from_millis(50),
                "it computes while it has nothing to do"
            );
            peer.send(&frame(1, 60));
            same(&guest.receive(0), &frame(1, 60));
        },
    );
}

#[test]
fn a_packet_with_too_few_buffers_is_lost_and_the_next_is_not() {
    in_own_namespace(
        "receiving::a_packet_with_too_few_buffers_is_lost_and_the_next_is_not",
        || {
            let net = Net::start("");
            let peer = Peer::new(Offloads::empty());
            let mut guest = Guest::connect(&net, MERGED | LARGE, 2);
            guest.post_receive(0, 3, PAGE_PART);

            peer.send(&large_tcp(60_000));
            peer.send(&frame(5, 60));

            same(&guest.receive(0), &frame(5, 60));
            assert!(!guest.receives_within(0, Duration::from_millis(100)));
        },
    );
}

#[test]
fn buffers_survive_a_back_end_that_is_killed() {
    in_own_namespace(
        "receiving::buffers_survive_a_back_end_that_is_killed",
        || {
            crate::wire::ip("tuntap add dev net0 mode tap vnet_hdr");
            let mut net = Net::start("");
            let peer = Peer::new(Offloads::empty());
            let mut guest = Guest::connect(&net, MERGED | LARGE, 2);
            guest.post_receive(0, 200, PAGE_PART);
            for _ in 0..2 {
                peer.send(&large_tcp(50_000));
                carries(&guest.receive(0), 50_000);
            }
            let left = guest.outstanding(0);

            net.child.kill().unwrap();
            net.child.wait().unwrap();
            let next = Net::start("");
            guest.reconnect(&next);

            // Every buffer that is left is used once.
            for number in 0..left {
                peer.send(&frame(number as u8, 100));
                same(&guest.receive(0), &frame(number as u8, 100));
            }
            assert_eq!(guest.outstanding(0), 0);
        },
    );
}

#[test]
fn another_guest_is_served_after_the_first() {
    in_own_namespace("receiving::another_guest_is_served_after_the_first", || {
        let net = Net::start("--persist");
        let peer = Peer::new(Offloads::empty());
        let mut first = Guest::connect(&net, MERGED | LARGE, 2);
        first.post_receive(0, 50, PAGE_PART);
        peer.send(&large_tcp(20_000));
        first.receive(0);
        drop(first);

        // This guest takes no large packets.
        let mut second = Guest::connect(&net, MERGED, 2);
        second.post_receive(0, 50, 2048);
        eventually("the offloads are the second's", || {
            peer.send(&large_tcp(2 * SEGMENT));
            let got = second.receive(0);
            if got[1] == 0 {
                assert_eq!(tcp_data(&second.receive(0)).len(), SEGMENT);
            }
            got[1] == 0
        });
    });
}
