//! Several pairs of queues.

use std::time::Duration;

use tap::Offloads;

use crate::guest::{Guest, MERGED, SEVERAL};
use crate::wire::{Net, Peer, frame, in_own_namespace, ones, same};

/// Says how many pairs the guest uses; what the device answers.
fn use_pairs(guest: &mut Guest, pairs: u16) -> u8 {
    command(guest, &[4, 0, pairs as u8, (pairs >> 8) as u8])
}

/// Gives the control queue, the last, a command; what the device answers.
fn command(guest: &mut Guest, command: &[u8]) -> u8 {
    let control = guest.rings.len() - 1;
    let (readable, writable) = (0x10_0000, 0x10_1000);
    guest.put(readable, command);
    guest.put(writable, &[0xee]);
    guest.put_descriptor(control, 0, (readable, command.len() as u32, 1, 1));
    guest.put_descriptor(control, 1, (writable, 1, 2, 0));
    guest.offer(control, 0);
    guest.rings[control].kick.write(1).unwrap();
    assert_eq!(guest.wait_used(control, 1), [(0, 1)]);
    guest.get(writable, 1)[0]
}

#[test]
fn a_guest_gets_frames_on_the_pairs_it_uses_and_on_no_other() {
    in_own_namespace(
        "queues::a_guest_gets_frames_on_the_pairs_it_uses_and_on_no_other",
        || {
            let net = Net::start("--num-queues 2");
            let peer = Peer::new(Offloads::empty());
            let mut guest = Guest::connect(&net, MERGED | SEVERAL, 5);
            assert_eq!(guest.config(10)[8..], [2, 0], "two pairs");
            guest.post_receive(0, 100, 1536);
            guest.post_receive(2, 100, 1536);

            // One pair until the driver says more: nothing is steered to the second, whatever its hash.
            for number in 0..64 {
                peer.send(&frame(number, 100));
                same(&guest.receive(0), &frame(number, 100));
            }
            assert_eq!(guest.used_index(2), 0);

            assert_eq!(use_pairs(&mut guest, 2), 0);
            // The kernel chooses a queue by the hash of a flow; of this many flows each queue gets some.
            let mut on_second = 0;
            for port in 0..64u8 {
                peer.send(&udp(port));
                if guest.receives_within(2, Duration::from_millis(50)) {
                    same(&guest.receive(2), &udp(port));
                    on_second += 1;
                } else if guest.outstanding(0) > 0 {
                    guest.receive(0);
                }
                if on_second > 0 && port > 8 {
                    break;
                }
            }
            assert!(on_second > 0);
        },
    );
}

/// UDP from a port of its own.
fn udp(port: u8) -> Vec<u8> {
    let mut udp = frame(1, 80);
    udp[24..26].copy_from_slice(&[8, 0]);
    udp[26..46].copy_from_slice(&[
        0x45, 0, 0, 66, 0, 1, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
    ]);
    // Kernels may look at IP on bridges too.
    let sum = !ones(&udp[26..46], 0);
    udp[36..38].copy_from_slice(&sum.to_be_bytes());
    udp[46..54].copy_from_slice(&[0x10, port, 0x20, 0, 0, 46, 0, 0]);
    udp
}

#[test]
fn numbers_of_pairs_that_there_are_not_are_refused() {
    in_own_namespace(
        "queues::numbers_of_pairs_that_there_are_not_are_refused",
        || {
            let net = Net::start("--num-queues 2");
            let mut guest = Guest::connect(&net, MERGED | SEVERAL, 5);
            for (pairs, answer) in [(0, 1), (3, 1), (u16::MAX, 1), (2, 0), (1, 0)] {
                assert_eq!(use_pairs(&mut guest, pairs), answer, "{pairs} pairs");
            }
            for nonsense in [
                &[4, 1, 1, 0][..],
                &[0, 0, 1],
                &[4, 0, 1],
                &[4, 0, 1, 0, 0],
                &[9; 100],
            ] {
                assert_eq!(command(&mut guest, nonsense), 1, "{nonsense:?}");
            }
        },
    );
}

#[test]
fn both_pairs_send() {
    in_own_namespace("queues::both_pairs_send", || {
        let net = Net::start("--num-queues 2");
        let peer = Peer::new(Offloads::empty());
        let mut guest = Guest::connect(&net, MERGED | SEVERAL, 5);
        assert_eq!(use_pairs(&mut guest, 2), 0);
        let sent = frame(6, 300);
        guest.put(Guest::buffer(3, 0), &sent);
        guest.post(3, &[sent.len() as u32], false);
        guest.rings[3].kick.write(1).unwrap();
        assert_eq!(guest.wait_used(3, 1), [(0, 0)]);
        same(&peer.receive(), &sent);
    });
}
