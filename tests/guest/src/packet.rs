//! Ethernet, ARP, IPv4, ICMP echo and UDP: as much as it takes to talk to a host's network stack.

use alloc::vec::Vec;

/// An Ethernet address.
pub(crate) type Mac = [u8; 6];
/// An IPv4 address.
pub(crate) type Ip = [u8; 4];

const BROADCAST: Mac = [0xff; 6];
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ARP_REQUEST: u16 = 1;
const ARP_REPLY: u16 = 2;
const PROTOCOL_ICMP: u8 = 1;
const PROTOCOL_UDP: u8 = 17;
const ICMP_ECHO_REQUEST: u8 = 8;
const ICMP_ECHO_REPLY: u8 = 0;
const IPV4_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
const ICMP_HEADER: usize = 8;

/// Parses `a.b.c.d`.
pub(crate) fn parse_ip(text: &str) -> Option<Ip> {
    let mut parts = text.split('.').map(|part| part.parse().ok());
    let ip = [
        parts.next()??,
        parts.next()??,
        parts.next()??,
        parts.next()??,
    ];
    parts.next().is_none().then_some(ip)
}

/// One end of the conversation, and the other.
#[derive(Clone, Copy)]
pub(crate) struct Addresses {
    /// This end.
    pub(crate) mac: Mac,
    /// This end.
    pub(crate) ip: Ip,
    /// The other end, once it is known.
    pub(crate) peer_mac: Mac,
    /// The other end.
    pub(crate) peer_ip: Ip,
}

/// A frame that concerns this end.
pub(crate) enum Received<'a> {
    /// Somebody asks for this end's Ethernet address.
    ArpRequest {
        /// Who asks.
        mac: Mac,
        /// Who asks.
        ip: Ip,
    },
    /// The peer tells its Ethernet address.
    ArpReply(Mac),
    /// The peer's answer to an echo request.
    EchoReply {
        /// The number the request had.
        sequence: u16,
        /// What it carries.
        data: &'a [u8],
    },
    /// A datagram from the peer.
    Udp {
        /// Where it comes from.
        from_port: u16,
        /// What it carries.
        data: &'a [u8],
    },
    /// Something else.
    Other,
}

/// The Internet checksum of `parts`, all but the last of even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u32;
    for pair in parts.iter().flat_map(|part| part.chunks(2)) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn be16(bytes: &[u8], offset: usize) -> u16 {
    u16::from_be_bytes([bytes[offset], bytes[offset + 1]])
}

fn array<const SIZE: usize>(bytes: &[u8], offset: usize) -> [u8; SIZE] {
    let mut array = [0; SIZE];
    array.copy_from_slice(&bytes[offset..offset + SIZE]);
    array
}

impl Addresses {
    fn ethernet(&self, to: Mac, kind: u16) -> Vec<u8> {
        let mut frame = Vec::with_capacity(1514);
        frame.extend(to);
        frame.extend(self.mac);
        frame.extend(kind.to_be_bytes());
        frame
    }

    fn arp(&self, operation: u16, to: Mac, mac: Mac, ip: Ip) -> Vec<u8> {
        let mut frame = self.ethernet(to, ETHERTYPE_ARP);
        frame.extend([0, 1, 8, 0, 6, 4]);
        frame.extend(operation.to_be_bytes());
        frame.extend(self.mac);
        frame.extend(self.ip);
        frame.extend(mac);
        frame.extend(ip);
        frame.resize(60, 0);
        frame
    }

    /// Asks for the peer's Ethernet address.
    pub(crate) fn arp_request(&self) -> Vec<u8> {
        self.arp(ARP_REQUEST, BROADCAST, [0; 6], self.peer_ip)
    }

    /// Tells this end's Ethernet address.
    pub(crate) fn arp_reply(&self, mac: Mac, ip: Ip) -> Vec<u8> {
        self.arp(ARP_REPLY, mac, mac, ip)
    }

    fn ipv4(&self, protocol: u8, size: usize) -> Vec<u8> {
        let mut frame = self.ethernet(self.peer_mac, ETHERTYPE_IPV4);
        let mut header = Vec::with_capacity(IPV4_HEADER);
        header.extend([0x45, 0]);
        header.extend(((IPV4_HEADER + size) as u16).to_be_bytes());
        header.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
        header.extend(self.ip);
        header.extend(self.peer_ip);
        let sum = checksum(&[&header]);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        frame.extend(header);
        frame
    }

    /// An echo request.
    pub(crate) fn echo_request(&self, sequence: u16, data: &[u8]) -> Vec<u8> {
        let mut frame = self.ipv4(PROTOCOL_ICMP, ICMP_HEADER + data.len());
        let mut header = [ICMP_ECHO_REQUEST, 0, 0, 0, 0, 1, 0, 0];
        header[6..8].copy_from_slice(&sequence.to_be_bytes());
        let sum = checksum(&[&header, data]);
        header[2..4].copy_from_slice(&sum.to_be_bytes());
        frame.extend(header);
        frame.extend(data);
        frame
    }

    /// A datagram.
    pub(crate) fn udp(&self, from_port: u16, to_port: u16, data: &[u8]) -> Vec<u8> {
        let size = UDP_HEADER + data.len();
        let mut frame = self.ipv4(PROTOCOL_UDP, size);
        let mut header = [0; UDP_HEADER];
        header[0..2].copy_from_slice(&from_port.to_be_bytes());
        header[2..4].copy_from_slice(&to_port.to_be_bytes());
        header[4..6].copy_from_slice(&(size as u16).to_be_bytes());
        let pseudo = [0, PROTOCOL_UDP, (size >> 8) as u8, size as u8];
        let sum = match checksum(&[&self.ip, &self.peer_ip, &pseudo, &header, data]) {
            0 => 0xffff,
            sum => sum,
        };
        header[6..8].copy_from_slice(&sum.to_be_bytes());
        frame.extend(header);
        frame.extend(data);
        frame
    }

    /// What a frame means to this end.
    pub(crate) fn parse<'a>(&self, frame: &'a [u8]) -> Received<'a> {
        if frame.len() < 14 || (frame[..6] != self.mac && frame[..6] != BROADCAST) {
            return Received::Other;
        }
        match be16(frame, 12) {
            ETHERTYPE_ARP => self.parse_arp(&frame[14..]),
            ETHERTYPE_IPV4 => self.parse_ipv4(&frame[14..]),
            _ => Received::Other,
        }
    }

    fn parse_arp<'a>(&self, arp: &[u8]) -> Received<'a> {
        if arp.len() < 28 || arp[24..28] != self.ip {
            return Received::Other;
        }
        let (mac, ip) = (array(arp, 8), array(arp, 14));
        match be16(arp, 6) {
            ARP_REQUEST => Received::ArpRequest { mac, ip },
            ARP_REPLY if ip == self.peer_ip => Received::ArpReply(mac),
            _ => Received::Other,
        }
    }

    fn parse_ipv4<'a>(&self, packet: &'a [u8]) -> Received<'a> {
        if packet.len() < IPV4_HEADER || packet[0] != 0x45 {
            return Received::Other;
        }
        let (header, rest) = packet.split_at(IPV4_HEADER);
        let size = usize::from(be16(header, 2));
        if header[12..16] != self.peer_ip
            || header[16..20] != self.ip
            || size < IPV4_HEADER
            || size > packet.len()
        {
            return Received::Other;
        }
        assert!(
            checksum(&[header]) == 0,
            "IPv4 header with a wrong checksum"
        );
        let body = &rest[..size - IPV4_HEADER];
        match header[9] {
            PROTOCOL_ICMP if body.len() >= ICMP_HEADER && body[0] == ICMP_ECHO_REPLY => {
                assert!(checksum(&[body]) == 0, "ICMP message with a wrong checksum");
                Received::EchoReply {
                    sequence: be16(body, 6),
                    data: &body[ICMP_HEADER..],
                }
            }
            PROTOCOL_UDP if body.len() >= UDP_HEADER => {
                let pseudo = [0, PROTOCOL_UDP, (body.len() >> 8) as u8, body.len() as u8];
                let sum = checksum(&[&header[12..20], &pseudo, body]);
                assert!(
                    be16(body, 6) == 0 || sum == 0,
                    "UDP datagram with a wrong checksum"
                );
                Received::Udp {
                    from_port: be16(body, 0),
                    data: &body[UDP_HEADER..],
                }
            }
            _ => Received::Other,
        }
    }
}
