//! Netlink messages: a request for a list, and attributes.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};

/// A message's header (`nlmsghdr`), and nftables' (`nfgenmsg`).
const HEADER: usize = 16;
const GENERAL: usize = 4;

/// How long the kernel may take to list everything.
const LIMIT: Duration = Duration::from_secs(5);
/// The most that is read.
const MOST: usize = 64 << 20;
/// How often a list is asked for that changes meanwhile.
const TRIES: u32 = 5;

pub(super) struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

/// The family and the attributes of each message of a list.
type List = Vec<(u8, Vec<u8>)>;

impl Socket {
    pub(super) fn open() -> io::Result<Self> {
        let fd = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            Some(netlink::NETFILTER),
        )?;
        set_socket_timeout(&fd, Timeout::Recv, Some(LIMIT))?;
        Ok(Self { fd, sequence: 0 })
    }

    /// Asks for everything of a kind, in all families.
    pub(super) fn dump(&mut self, kind: libc::c_int) -> io::Result<List> {
        for _ in 0..TRIES {
            if let Some(list) = self.try_dump(kind)? {
                return Ok(list);
            }
        }
        Err(io::Error::other("the rules change all the time"))
    }

    fn try_dump(&mut self, kind: libc::c_int) -> io::Result<Option<List>> {
        self.sequence += 1;
        let request = request(kind, self.sequence);
        send(&self.fd, &request, SendFlags::empty())?;
        let deadline = Instant::now() + LIMIT;
        let mut list = List::new();
        let mut read = 0;
        let mut whole = true;
        let mut buffer = vec![0; 256 << 10];
        loop {
            let (received, _) = recv(&self.fd, &mut buffer[..], RecvFlags::empty())?;
            read += received;
            if read > MOST || Instant::now() > deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let mut rest = buffer.get(..received).unwrap_or_default();
            while let Some((message, next)) = Message::first(rest) {
                rest = next;
                if message.sequence != self.sequence {
                    continue;
                }
                whole &= message.flags & NLM_F_DUMP_INTR == 0;
                match i32::from(message.kind) {
                    libc::NLMSG_DONE => return Ok(whole.then_some(list)),
                    libc::NLMSG_ERROR => return Err(message.error()),
                    _ => list.extend(message.into_entry()),
                }
            }
        }
    }
}

/// The list has changed while it was read.
const NLM_F_DUMP_INTR: u16 = 0x10;

fn request(kind: libc::c_int, sequence: u32) -> Vec<u8> {
    let kind = libc::NFNL_SUBSYS_NFTABLES << 8 | kind;
    let flags = libc::NLM_F_REQUEST | libc::NLM_F_DUMP;
    let mut bytes = Vec::new();
    bytes.extend(20_u32.to_ne_bytes());
    bytes.extend((kind as u16).to_ne_bytes());
    bytes.extend((flags as u16).to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    // No port, all families, version 0, no resource.
    bytes.extend([0; 4 + GENERAL]);
    bytes
}

struct Message<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// The first message, and those after it.
    fn first(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let number = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let short = |at: usize| Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        let length = usize::try_from(number(0)?).ok()?;
        let message = Self {
            kind: short(4)?,
            flags: short(6)?,
            sequence: number(8)?,
            payload: bytes.get(HEADER..length)?,
        };
        let next = bytes
            .get(length.checked_next_multiple_of(4)?..)
            .unwrap_or_default();
        Some((message, next))
    }

    fn error(&self) -> io::Error {
        let code = self.payload.get(..4).and_then(|code| code.try_into().ok());
        let code = code.map_or(0, i32::from_ne_bytes);
        Errno::from_raw_os_error(code.saturating_neg()).into()
    }

    fn into_entry(self) -> Option<(u8, Vec<u8>)> {
        let attributes = self.payload.get(GENERAL..)?.to_vec();
        self.payload.first().map(|family| (*family, attributes))
    }
}

/// Attributes, one after the other.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attributes<'a>(pub(super) &'a [u8]);

impl<'a> Attributes<'a> {
    pub(super) fn iter(self) -> impl Iterator<Item = (u16, &'a [u8])> {
        /// The bits that say of what a value consists.
        const FLAGS: u16 = 0xc000;
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let length = u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?);
            let kind = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?);
            let length = usize::from(length);
            let value = rest.get(4..length)?;
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            Some((kind & !FLAGS, value))
        })
    }

    pub(super) fn get(self, kind: u16) -> Option<&'a [u8]> {
        self.iter()
            .find(|(found, _)| *found == kind)
            .map(|(_, value)| value)
    }

    pub(super) fn string(self, kind: u16) -> Option<String> {
        let bytes = self.get(kind)?;
        let end = bytes
            .iter()
            .position(|byte| *byte == 0)
            .unwrap_or(bytes.len());
        Some(String::from_utf8_lossy(bytes.get(..end)?).into_owned())
    }
}

/// A number in network byte order.
pub(super) fn be32(bytes: &[u8]) -> Option<u32> {
    bytes.try_into().ok().map(u32::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_what_is_cut_off_is_the_end() {
        let bytes = [
            7, 0, 1, 0, b'a', b'b', 0, 0, 8, 0, 2, 0x80, 0, 0, 0, 9, 9, 0, 3, 0, 1,
        ];
        let attributes = Attributes(&bytes);
        assert_eq!(attributes.string(1).as_deref(), Some("ab"));
        assert_eq!(attributes.get(2).and_then(be32), Some(9));
        assert_eq!(attributes.get(3), None);
        assert_eq!(Attributes(&[0; 8]).iter().count(), 0);
    }

    #[test]
    fn a_message_that_says_it_is_longer_than_it_is_is_none() {
        let mut bytes = request(libc::NFT_MSG_GETCHAIN, 1);
        assert!(Message::first(&bytes).is_some());
        bytes[0] = 24;
        assert!(Message::first(&bytes).is_none());
        bytes[0] = 3;
        assert!(Message::first(&bytes).is_none());
    }
}
