//! Netlink sockets: a request and its acknowledgement, a dump, notifications, and the attributes of messages.

mod attribute;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr};

pub(crate) use attribute::Attributes;

/// Bytes of `struct nlmsghdr`.
pub(crate) const HEADER: usize = 16;

/// How often a dump is tried: it is incomplete if something has changed meanwhile (`NLM_F_DUMP_INTR`).
const MAX_DUMPS: usize = 10;

/// A netlink socket and the sequence number of the last request.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: Socket,
    sequence: u32,
}

/// A message of the kernel: the header, which all families have, and the bytes.
pub(crate) struct Raw<'a> {
    pub(crate) kind: u16,
    flags: u16,
    pub(crate) sequence: u32,
    /// The port number of the socket whose request this answers, or whose change it notifies of.
    pub(crate) port: u32,
    /// The message, including its header.
    pub(crate) whole: &'a [u8],
}

impl Netlink {
    /// Connects to the kernel for a family, such as `NETLINK_ROUTE`.
    pub(crate) fn open(family: isize) -> io::Result<Self> {
        let mut socket = Socket::new(family)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Netlink {
            socket,
            sequence: 0,
        })
    }

    /// Subscribes to a family's notifications, by multicast group. The socket does not block.
    pub(crate) fn listen(family: isize, groups: &[u32]) -> io::Result<Self> {
        let netlink = Netlink::open(family)?;
        for &group in groups {
            netlink.socket.add_membership(group)?;
        }
        netlink.socket.set_non_blocking(true)?;
        Ok(netlink)
    }

    /// Reads the notifications that have arrived. The error is `ENOBUFS` when some were lost.
    pub(crate) fn read_notifications(&self, mut each: impl FnMut(Raw<'_>)) -> io::Result<()> {
        let received = self.receive(|raw| {
            each(raw);
            Ok(false)
        });
        match received {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(()),
            other => other,
        }
    }

    /// The socket's port number, which notifications of this socket's own changes contain.
    pub(crate) fn port(&self) -> io::Result<u32> {
        let mut address = SocketAddr::new(0, 0);
        self.socket.get_address(&mut address)?;
        Ok(address.port_number())
    }

    /// The sequence number for the next request.
    pub(crate) fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    /// Sends whole messages.
    pub(crate) fn send(&self, bytes: &[u8]) -> io::Result<()> {
        match self.socket.send(bytes, 0)? {
            n if n == bytes.len() => Ok(()),
            _ => Err(io::Error::new(
                io::ErrorKind::WriteZero,
                "netlink has taken only a part of a message",
            )),
        }
    }

    /// Receives messages until `each` returns true.
    pub(crate) fn receive(
        &self,
        mut each: impl FnMut(Raw<'_>) -> io::Result<bool>,
    ) -> io::Result<()> {
        loop {
            let (bytes, from) = self.socket.recv_from_full()?;
            // Only the kernel has port 0.
            if from.port_number() == 0 && self.split(&bytes, &mut each)? {
                return Ok(());
            }
        }
    }

    fn split(
        &self,
        mut bytes: &[u8],
        each: &mut impl FnMut(Raw<'_>) -> io::Result<bool>,
    ) -> io::Result<bool> {
        let mut is_done = false;
        while let Some(header) = bytes.first_chunk::<HEADER>() {
            let [a, b, c, d, e, f, o, p, g, h, i, j, k, l, m, n] = *header;
            let length = u32::from_ne_bytes([a, b, c, d]) as usize;
            if length < HEADER {
                break;
            }
            let Some(whole) = bytes.get(..length) else {
                break;
            };
            let raw = Raw {
                kind: u16::from_ne_bytes([e, f]),
                flags: u16::from_ne_bytes([o, p]),
                sequence: u32::from_ne_bytes([g, h, i, j]),
                port: u32::from_ne_bytes([k, l, m, n]),
                whole,
            };
            is_done |= each(raw)?;
            bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(is_done)
    }

    /// Sends one request of the routing family and waits for its acknowledgement.
    pub(crate) fn request(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        let sequence = self.send_route(message, flags | NLM_F_ACK)?;
        self.receive(|raw| acknowledged(&raw, sequence))
    }

    /// Dumps all objects of a kind of the routing family. Messages that cannot be parsed are left out.
    pub(crate) fn dump(
        &mut self,
        message: RouteNetlinkMessage,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        let (mut all, mut is_whole) = self.dump_once(message.clone())?;
        for _ in 1..MAX_DUMPS {
            if is_whole {
                break;
            }
            (all, is_whole) = self.dump_once(message.clone())?;
        }
        Ok(all)
    }

    /// Dumps once. Also returns whether the dump is whole: when something has changed meanwhile, other objects may be
    /// missing.
    fn dump_once(
        &mut self,
        message: RouteNetlinkMessage,
    ) -> io::Result<(Vec<RouteNetlinkMessage>, bool)> {
        let sequence = self.send_route(message, NLM_F_DUMP)?;
        let (mut all, mut is_whole) = (Vec::new(), true);
        self.receive(|raw| {
            if raw.sequence != sequence {
                return Ok(false);
            }
            is_whole &= raw.flags & NLM_F_DUMP_INTR == 0;
            if raw.kind == NLMSG_DONE {
                return Ok(true);
            }
            if raw.kind == NLMSG_ERROR {
                return acknowledged(&raw, sequence);
            }
            all.extend(parse(&raw));
            Ok(false)
        })?;
        Ok((all, is_whole))
    }

    /// Gets one object of the routing family.
    pub(crate) fn get(
        &mut self,
        message: RouteNetlinkMessage,
    ) -> io::Result<Option<RouteNetlinkMessage>> {
        let sequence = self.send_route(message, 0)?;
        let mut found = None;
        self.receive(|raw| {
            if raw.sequence != sequence {
                return Ok(false);
            }
            if raw.kind == NLMSG_ERROR {
                return acknowledged(&raw, sequence);
            }
            found = parse(&raw);
            Ok(true)
        })?;
        Ok(found)
    }

    fn send_route(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<u32> {
        let sequence = self.next_sequence();
        let mut message = NetlinkMessage::from(message);
        message.header.flags = flags | NLM_F_REQUEST;
        message.header.sequence_number = sequence;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.send(&bytes)?;
        Ok(sequence)
    }
}

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The message, if it is of the routing family and can be parsed.
pub(crate) fn parse(raw: &Raw<'_>) -> Option<RouteNetlinkMessage> {
    match NetlinkMessage::deserialize(raw.whole).ok()?.payload {
        NetlinkPayload::InnerMessage(message) => Some(message),
        _ => None,
    }
}

/// Whether a message acknowledges the request with that sequence number. Returns the request's error if the message
/// contains one.
pub(crate) fn acknowledged(raw: &Raw<'_>, sequence: u32) -> io::Result<bool> {
    if raw.sequence != sequence || raw.kind != NLMSG_ERROR {
        return Ok(false);
    }
    match raw
        .whole
        .get(HEADER..)
        .and_then(|rest| rest.first_chunk::<4>())
    {
        Some(&code) => match i32::from_ne_bytes(code) {
            0 => Ok(true),
            code => Err(io::Error::from_raw_os_error(code.saturating_neg())),
        },
        None => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "netlink has sent an error message without a code",
        )),
    }
}
