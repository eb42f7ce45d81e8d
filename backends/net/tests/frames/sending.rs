//! From the guest to the wire.

use tap::Offloads;

use crate::guest::{Guest, LARGE};
use crate::wire::{
    Net, Peer, SEGMENT, carries, data, frame, in_own_namespace, large_tcp, same, tcp_data,
};

#[test]
fn a_frame_arrives_as_it_was_sent_however_it_lies_in_memory() {
    in_own_namespace(
        "sending::a_frame_arrives_as_it_was_sent_however_it_lies_in_memory",
        || {
            let net = Net::start("");
            let peer = Peer::new(Offloads::empty());
            let mut guest = Guest::connect(&net, 0, 2);
            for (number, pieces) in [
                &[][..],
                &[12],
                &[5],
                &[12, 14, 1],
                &[1, 1, 1, 1, 1, 1, 1, 40],
            ]
            .into_iter()
            .enumerate()
            {
                let sent = frame(number as u8, 1514);

                guest.send(&sent, pieces);

                same(&peer.receive(), &sent);
            }
        },
    );
}

#[test]
fn a_large_packet_goes_whole_to_who_takes_it_whole() {
    in_own_namespace(
        "sending::a_large_packet_goes_whole_to_who_takes_it_whole",
        || {
            let net = Net::start("");
            let peer = Peer::new(Offloads::CSUM | Offloads::TSO4);
            let mut guest = Guest::connect(&net, LARGE, 2);
            let sent = large_tcp(40_000);

            guest.send(&sent, &[12, 54]);

            let got = peer.receive();
            carries(&got, 40_000);
            assert_eq!(got[1], 1, "still to be cut");
        },
    );
}

#[test]
fn the_kernel_cuts_what_the_guest_did_not() {
    in_own_namespace("sending::the_kernel_cuts_what_the_guest_did_not", || {
        let net = Net::start("");
        let peer = Peer::new(Offloads::empty());
        let mut guest = Guest::connect(&net, LARGE, 2);

        guest.send(&large_tcp(10 * SEGMENT), &[]);

        let segments: Vec<_> = (0..10).map(|_| peer.receive()).collect();
        let all: Vec<u8> = segments
            .iter()
            .flat_map(|segment| tcp_data(segment).to_vec())
            .collect();
        assert!(all == data(10 * SEGMENT));
    });
}

#[test]
fn what_the_kernel_does_not_take_is_lost_and_the_next_is_not() {
    in_own_namespace(
        "sending::what_the_kernel_does_not_take_is_lost_and_the_next_is_not",
        || {
            let net = Net::start("");
            let peer = Peer::new(Offloads::empty());
            let mut guest = Guest::connect(&net, LARGE, 2);
            let mut liar = large_tcp(3000);
            liar[2..12].copy_from_slice(&[0xff; 10]);
            for nonsense in [
                &[0u8][..],
                &[0; 12],
                &[0xff; 12],
                &[0; 20],
                &liar,
                &vec![0; 69_000],
            ] {
                guest.send(nonsense, &[]);
            }
            let sent = frame(1, 60);
            guest.send(&sent, &[]);
            same(&peer.receive(), &sent);
        },
    );
}

#[test]
fn the_driver_is_notified_when_it_wants_to_be() {
    in_own_namespace(
        "sending::the_driver_is_notified_when_it_wants_to_be",
        || {
            let net = Net::start("");
            let _peer = Peer::new(Offloads::empty());
            let mut guest = Guest::connect(&net, 0, 2);
            guest.send(&frame(0, 60), &[]);
            while guest.rings[1].call.read().is_ok() {}
            // The driver wants a call for the tenth chain from here, and for none before it.
            guest.want_call(1, 10);
            for _ in 0..9 {
                guest.post(1, &[60], false);
            }
            guest.rings[1].kick.write(1).unwrap();
            crate::wire::eventually("nine are sent", || guest.used_index(1) == 10);
            assert!(guest.rings[1].call.read().is_err());

            guest.post(1, &[60], false);
            guest.rings[1].kick.write(1).unwrap();

            assert!(crate::guest::readable(
                &guest.rings[1].call,
                crate::wire::PATIENCE
            ));
        },
    );
}
