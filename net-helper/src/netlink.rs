//! One conversation with the kernel over netlink: a request and its acknowledgement, or a dump.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr};

/// Bytes of `struct nlmsghdr`.
pub(crate) const HEADER: usize = 16;

/// How often a dump is begun again because something has changed meanwhile.
const DUMPS: usize = 10;

/// A netlink socket and the number of the last request.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: Socket,
    sequence: u32,
}

/// A message of the kernel: what is common to all families.
pub(crate) struct Raw<'a> {
    pub(crate) kind: u16,
    flags: u16,
    pub(crate) sequence: u32,
    /// The number of the socket whose request this is about.
    pub(crate) port: u32,
    /// With its header.
    pub(crate) whole: &'a [u8],
}

impl Netlink {
    /// Connects to a family of the kernel's, such as `NETLINK_ROUTE`.
    pub(crate) fn open(family: isize) -> io::Result<Self> {
        let mut socket = Socket::new(family)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Netlink {
            socket,
            sequence: 0,
        })
    }

    /// Listens to what a family reports of changes, in these groups. Never waits.
    pub(crate) fn listen(family: isize, groups: &[u32]) -> io::Result<Self> {
        let netlink = Netlink::open(family)?;
        for &group in groups {
            netlink.socket.add_membership(group)?;
        }
        netlink.socket.set_non_blocking(true)?;
        Ok(netlink)
    }

    /// Takes the reports that have arrived. An error is `ENOBUFS` when some were lost.
    pub(crate) fn reports(&self, mut each: impl FnMut(Raw<'_>)) -> io::Result<()> {
        let taken = self.receive(|raw| {
            each(raw);
            Ok(false)
        });
        match taken {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(()),
            other => other,
        }
    }

    /// The socket's own number, which the kernel gives with what it says of this socket's changes.
    pub(crate) fn port(&self) -> io::Result<u32> {
        let mut address = SocketAddr::new(0, 0);
        self.socket.get_address(&mut address)?;
        Ok(address.port_number())
    }

    /// A number for the next request.
    pub(crate) fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    /// Sends bytes that are whole messages.
    pub(crate) fn send(&self, bytes: &[u8]) -> io::Result<()> {
        match self.socket.send(bytes, 0)? {
            n if n == bytes.len() => Ok(()),
            _ => Err(io::Error::new(
                io::ErrorKind::WriteZero,
                "netlink took part of a message",
            )),
        }
    }

    /// Receives until `each` says that it has seen enough.
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
        let mut enough = false;
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
            enough |= each(raw)?;
            bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(enough)
    }

    /// Makes one request of the routing family and waits for its acknowledgement.
    pub(crate) fn request(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        let sequence = self.send_route(message, flags | NLM_F_ACK)?;
        self.receive(|raw| acknowledged(&raw, sequence))
    }

    /// Asks the routing family for everything of a kind. What this program cannot read is left out.
    pub(crate) fn dump(
        &mut self,
        message: RouteNetlinkMessage,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        let (mut all, mut is_whole) = self.dump_once(message.clone())?;
        for _ in 1..DUMPS {
            if is_whole {
                break;
            }
            (all, is_whole) = self.dump_once(message.clone())?;
        }
        Ok(all)
    }

    /// The same, and whether nothing has changed meanwhile: where something has, something else may have been left out.
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

    /// Asks the routing family for one thing.
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

fn parse(raw: &Raw<'_>) -> Option<RouteNetlinkMessage> {
    match NetlinkMessage::deserialize(raw.whole).ok()?.payload {
        NetlinkPayload::InnerMessage(message) => Some(message),
        _ => None,
    }
}

/// Whether this message is the acknowledgement of that request; the error if it says so.
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
            "netlink sent an error without a number",
        )),
    }
}
