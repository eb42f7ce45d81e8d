//! Test of a network device against a real network stack.

use alloc::vec;
use alloc::vec::Vec;

use crc32fast::Hasher;

use super::NIC_VECTOR;
use crate::cmdline::CommandLine;
use crate::net::Nic;
use crate::packet::{Addresses, Ip, Received, parse_ip};
use crate::pattern;
use crate::pci::Configuration;
use crate::serial::say;
use crate::smp::ticks;

const LOCAL_PORT: u16 = 4000;
const WINDOW: u64 = 8;
const LARGEST_PAYLOAD: u64 = 1472;
const SMALLEST_PAYLOAD: u64 = 8;
/// Time stamp counter ticks of about a second.
const SECOND: u64 = 3_000_000_000;

struct Conversation {
    nic: Nic,
    addresses: Addresses,
    seed: u64,
    /// Ticks after which something is sent again.
    patience: u64,
    repeated: u64,
}

fn address(words: &CommandLine, name: &str) -> Ip {
    match words.value(name).and_then(parse_ip) {
        Some(ip) => ip,
        None => panic!("command line: {name}= must be an IPv4 address"),
    }
}

/// ARP, ICMP echo, UDP.
pub(super) fn check(words: &CommandLine, configuration: Configuration) {
    let nic = Nic::find(configuration, NIC_VECTOR);
    let mac = nic.mac();
    let [a, b, c, d, e, f] = mac;
    say!("net mac={a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
    let addresses = Addresses {
        mac,
        ip: address(words, "ip"),
        peer_mac: [0; 6],
        peer_ip: address(words, "peer"),
    };
    let mut talk = Conversation {
        nic,
        addresses,
        seed: words.number("seed", 1),
        patience: words.number("patience", 1) * SECOND,
        repeated: 0,
    };
    talk.find_peer();
    talk.ping(4);
    let count = words.number("n", 100);
    let step = count
        .checked_div(words.number("progress", 10))
        .unwrap_or(count);
    talk.datagrams(words.number("port", 7) as u16, count, step);
    talk.nic.drain();
    let (receive, transmit) = talk.nic.interrupts();
    say!(
        "net interrupts rx={receive} tx={transmit} repeated={}",
        talk.repeated
    );
}

impl Conversation {
    /// Receives until `wanted` is satisfied; sends `frames` first, and again whenever that takes too long.
    fn exchange(
        &mut self,
        frames: &mut dyn FnMut(&Addresses) -> Vec<Vec<u8>>,
        wanted: &mut dyn FnMut(Received) -> bool,
    ) {
        let mut attempt = 0;
        loop {
            let mut left = frames(&self.addresses);
            self.repeated += if attempt > 0 { left.len() as u64 } else { 0 };
            left.drain(..).for_each(|frame| self.nic.send(&frame));
            attempt += 1;
            let since = ticks();
            while ticks() - since < self.patience {
                let Some(frame) = self.nic.receive() else {
                    core::hint::spin_loop();
                    continue;
                };
                match self.addresses.parse(&frame) {
                    Received::ArpRequest { mac, ip } => {
                        let reply = self.addresses.arp_reply(mac, ip);
                        self.nic.send(&reply);
                    }
                    other => {
                        if wanted(other) {
                            return;
                        }
                    }
                }
            }
        }
    }

    fn find_peer(&mut self) {
        let mut peer = [0; 6];
        self.exchange(
            &mut |addresses| vec![addresses.arp_request()],
            &mut |received| match received {
                Received::ArpReply(mac) => {
                    peer = mac;
                    true
                }
                _ => false,
            },
        );
        self.addresses.peer_mac = peer;
        let [a, b, c, d, e, f] = peer;
        say!("net arp peer={a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
    }

    fn ping(&mut self, count: u16) {
        for sequence in 1..=count {
            let mut payload = vec![0; usize::from(sequence) * 56];
            pattern::fill(self.seed, 0, &mut payload);
            self.exchange(&mut |addresses| vec![addresses.echo_request(sequence, &payload)], &mut |received| {
                matches!(received, Received::EchoReply { sequence: got, data } if got == sequence && data == payload)
            });
        }
        say!("net ping replies={count}");
    }

    /// Datagram `index` carries its number and then the pattern; its answer the same with every bit inverted. Tells of every
    /// `step` of them.
    fn datagrams(&mut self, port: u16, count: u64, step: u64) {
        let mut sent = Hasher::new();
        let mut received = Hasher::new();
        let mut bytes = 0;
        for first in (0..count).step_by(WINDOW as usize) {
            let payloads: Vec<Vec<u8>> = (first..count.min(first + WINDOW))
                .map(|index| payload(self.seed, index))
                .collect();
            let mut answers: Vec<Option<Vec<u8>>> = vec![None; payloads.len()];
            let missing = core::cell::RefCell::new(vec![true; payloads.len()]);
            self.exchange(
                &mut |addresses| {
                    payloads
                        .iter()
                        .zip(missing.borrow().iter())
                        .filter(|(_, missing)| **missing)
                        .map(|(payload, _)| addresses.udp(LOCAL_PORT, port, payload))
                        .collect()
                },
                &mut |message| {
                    let Received::Udp { from_port, data } = message else {
                        return false;
                    };
                    let inverted: Vec<u8> = data.iter().map(|byte| !byte).collect();
                    if from_port != port {
                        return false;
                    }
                    let Some(slot) = payloads.iter().position(|payload| *payload == inverted)
                    else {
                        return false;
                    };
                    answers[slot] = Some(data.to_vec());
                    missing.borrow_mut()[slot] = false;
                    answers.iter().all(Option::is_some)
                },
            );
            for (payload, answer) in payloads.iter().zip(answers.iter().flatten()) {
                bytes += payload.len();
                sent.update(payload);
                received.update(answer);
            }
            if (first + WINDOW) % step.max(WINDOW) < WINDOW {
                say!("net datagrams={}", (first + WINDOW).min(count));
            }
        }
        say!(
            "net udp datagrams={count} bytes={bytes} sent-crc32={:#010x} received-crc32={:#010x}",
            sent.finalize(),
            received.finalize()
        );
    }
}

fn payload(seed: u64, index: u64) -> Vec<u8> {
    let size = SMALLEST_PAYLOAD + index * 37 % (LARGEST_PAYLOAD - SMALLEST_PAYLOAD + 1);
    let mut payload = vec![0; size as usize];
    pattern::fill(seed + index, 0, &mut payload);
    payload[..8].copy_from_slice(&index.to_le_bytes());
    payload
}
