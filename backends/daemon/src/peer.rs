//! The frontend's end of the socket, read only when a whole message is there and an answer will fit: `vhost` waits for the rest of a
//! message, and for room, without end, and a loop that waits for one frontend serves nobody and hears no signal.

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
    let available = ioctl_fionread(stream)?;
    let mut header = [0u8; HEADER];
    match recv(stream, &mut header, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
        Ok((_, 0)) | Err(Errno::CONNRESET) => return Ok(Incoming::End),
        Ok((_, length)) if length < HEADER => return Ok(Incoming::Nothing),
        Ok(_) => {}
        Err(Errno::AGAIN | Errno::INTR) => return Ok(Incoming::Nothing),
        Err(error) => return Err(error),
    }
    let word = |at: usize| {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&header[at..at + 4]);
        u32::from_ne_bytes(bytes)
    };
    let size = word(8) as usize;
    let whole = size > LARGEST || available >= (HEADER + size) as u64;
    if !whole || !has_room(stream)? {
        return Ok(Incoming::Nothing);
    }
    Ok(Incoming::Message(Header {
        request: word(0),
        flags: word(4),
    }))
}

/// A stream socket is writable while at least three quarters of its buffer are free: more than any answer needs.
fn has_room(stream: &UnixStream) -> Result<bool, Errno> {
    let now = Timespec::try_from(Duration::ZERO).unwrap_or_default();
    let mut fds = [PollFd::new(stream, PollFlags::OUT)];
    poll(&mut fds, Some(&now))?;
    Ok(!fds[0].revents().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

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
    fn the_end_is_seen() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        assert_eq!(look(&ours), Ok(Incoming::End));
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
