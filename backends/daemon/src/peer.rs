//! The frontend's end of the socket, read only when a whole message is there and an answer will fit: `vhost` waits for the rest of a
//! message, and for room, without end, and a loop that waits for one frontend serves nobody and hears no signal.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionread};
use rustix::net::{RecvFlags, recv};
use vhost::vhost_user::message::FrontendReq;

/// The bytes of a message header: request, flags, size.
const HEADER: usize = 12;
/// The largest message that `vhost` takes; it refuses a larger one by its header.
const LARGEST: usize = 4096;
/// The bytes of a `SET_VRING_ENABLE`: its header, the ring's index, and whether to enable it.
const RING_ENABLE: usize = HEADER + 8;
const VERSION: u32 = 1;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;

/// What there is to read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Incoming {
    /// A whole message, with this header.
    Message(Header),
    /// Nothing, or not all of a message yet.
    Nothing,
    /// The frontend has gone.
    End,
}

/// What matters of a header here.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Header {
    request: u32,
    flags: u32,
}

impl Header {
    /// Whether this enables or disables a ring.
    pub(crate) fn is_ring_enable(self) -> bool {
        self.request == u32::from(FrontendReq::SET_VRING_ENABLE)
    }

    /// Whether the frontend learns from an acknowledgement that this request failed. Requests with an answer of their own have none.
    pub(crate) fn is_acknowledged(self) -> bool {
        const ANSWERED: [FrontendReq; 7] = [
            FrontendReq::GET_FEATURES,
            FrontendReq::GET_VRING_BASE,
            FrontendReq::GET_PROTOCOL_FEATURES,
            FrontendReq::GET_QUEUE_NUM,
            FrontendReq::GET_CONFIG,
            FrontendReq::GET_INFLIGHT_FD,
            FrontendReq::GET_MAX_MEM_SLOTS,
        ];
        self.flags & NEED_REPLY != 0
            && FrontendReq::try_from(self.request).is_ok_and(|request| !ANSWERED.contains(&request))
    }
}

/// Looks what `stream` has, without taking it and without waiting.
pub(crate) fn look(stream: &UnixStream) -> Result<Incoming, Errno> {
    // First: once the frontend has gone, what is there is all there will be.
    let state = state(stream)?;
    let partial = if state.intersects(PollFlags::HUP | PollFlags::RDHUP) {
        Incoming::End
    } else {
        Incoming::Nothing
    };
    let available = ioctl_fionread(stream)?;
    let mut header = [0u8; HEADER];
    match recv(stream, &mut header, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
        Ok((_, 0)) | Err(Errno::CONNRESET) => return Ok(Incoming::End),
        Ok((_, length)) if length < HEADER => return Ok(partial),
        Ok(_) => {}
        Err(Errno::AGAIN | Errno::INTR) => return Ok(Incoming::Nothing),
        Err(error) => return Err(error),
    }
    let size = word(&header, 2) as usize;
    if size <= LARGEST && available < (HEADER + size) as u64 {
        return Ok(partial);
    }
    // A stream socket is writable while at least three quarters of its buffer are free: more than any answer needs.
    if !state.contains(PollFlags::OUT) {
        return Ok(Incoming::Nothing);
    }
    Ok(Incoming::Message(Header {
        request: word(&header, 0),
        flags: word(&header, 1),
    }))
}

fn word(message: &[u8], index: usize) -> u32 {
    let bytes = message.as_chunks().0.get(index);
    bytes.map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}

/// Takes a `SET_VRING_ENABLE` that [`look`] has seen, with its ring and what to set it to. `None` when it is malformed.
pub(crate) fn take_ring_enable(stream: &UnixStream) -> Result<Option<(u32, bool)>, Errno> {
    let mut message = [0u8; RING_ENABLE];
    let (_, length) = recv(stream, &mut message, RecvFlags::DONTWAIT)?;
    let whole = length == RING_ENABLE && word(&message, 2) as usize == RING_ENABLE - HEADER;
    Ok(match word(&message, 4) {
        enable @ 0..=1 if whole => Some((word(&message, 3), enable == 1)),
        _ => None,
    })
}

/// Tells the frontend that its `SET_VRING_ENABLE` is done.
pub(crate) fn acknowledge_ring_enable(mut stream: &UnixStream) -> io::Result<()> {
    let header = [
        u32::from(FrontendReq::SET_VRING_ENABLE),
        VERSION | REPLY,
        8,
        0,
        0,
    ];
    let bytes: Vec<u8> = header.iter().flat_map(|word| word.to_ne_bytes()).collect();
    stream.write_all(&bytes)
}

/// Whether there is room to write, and whether the other end has gone.
fn state(stream: &UnixStream) -> Result<PollFlags, Errno> {
    let now = Timespec::try_from(Duration::ZERO).unwrap_or_default();
    let mut fds = [PollFd::new(stream, PollFlags::OUT | PollFlags::RDHUP)];
    poll(&mut fds, Some(&now))?;
    Ok(fds[0].revents())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn message(request: u32, flags: u32, body: &[u8]) -> Vec<u8> {
        let size = body.len() as u32;
        let mut bytes: Vec<u8> = [request, flags, size]
            .iter()
            .flat_map(|word| word.to_ne_bytes())
            .collect();
        bytes.extend_from_slice(body);
        bytes
    }

    #[test]
    fn a_message_is_seen_once_it_is_whole() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let bytes = message(2, 1 | NEED_REPLY, &[0; 8]);
        for byte in &bytes[..bytes.len() - 1] {
            assert_eq!(look(&ours), Ok(Incoming::Nothing));
            theirs.write_all(&[*byte]).unwrap();
        }
        assert_eq!(look(&ours), Ok(Incoming::Nothing));
        theirs.write_all(&bytes[bytes.len() - 1..]).unwrap();

        let Ok(Incoming::Message(header)) = look(&ours) else {
            panic!("no message")
        };
        assert!(header.is_acknowledged());
    }

    #[test]
    fn a_message_that_is_too_large_is_passed_on_to_be_refused() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut bytes = message(2, 1, &[]);
        bytes[8..12].copy_from_slice(&u32::MAX.to_ne_bytes());
        theirs.write_all(&bytes).unwrap();
        assert!(matches!(look(&ours), Ok(Incoming::Message(_))));
    }

    #[test]
    fn a_ring_is_enabled_and_that_is_acknowledged() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let request = FrontendReq::SET_VRING_ENABLE.into();
        let body = |index: u32, num: u32| [index.to_ne_bytes(), num.to_ne_bytes()].concat();
        for (body, expected) in [
            (body(3, 1), Some((3, true))),
            (body(3, 0), Some((3, false))),
            (body(3, 2), None),
        ] {
            theirs
                .write_all(&message(request, 1 | NEED_REPLY, &body))
                .unwrap();
            assert!(
                matches!(look(&ours), Ok(Incoming::Message(header)) if header.is_ring_enable())
            );
            assert_eq!(take_ring_enable(&ours), Ok(expected));
        }
        acknowledge_ring_enable(&ours).unwrap();
        let mut answer = [0; RING_ENABLE];
        theirs.read_exact(&mut answer).unwrap();
        assert_eq!(
            answer.as_slice(),
            message(request, VERSION | REPLY, &[0; 8])
        );
    }

    #[test]
    fn the_end_is_seen() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        assert_eq!(look(&ours), Ok(Incoming::End));
    }

    #[test]
    fn the_end_is_seen_in_mid_message() {
        let bytes = message(2, 1, &[0; 8]);
        for length in [1, HEADER, bytes.len() - 1] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            theirs.write_all(&bytes[..length]).unwrap();
            assert_eq!(look(&ours), Ok(Incoming::Nothing));
            drop(theirs);
            assert_eq!(look(&ours), Ok(Incoming::End));
        }
    }

    #[test]
    fn a_frontend_that_takes_no_answers_is_not_heard() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(&message(1, 1, &[])).unwrap();
        ours.set_nonblocking(true).unwrap();
        while (&ours).write(&[0; 4096]).is_ok() {}
        assert_eq!(look(&ours), Ok(Incoming::Nothing));
    }
}
