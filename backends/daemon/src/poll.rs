//! The epoll set of a thread, and its typed events.

use std::collections::VecDeque;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;

/// An event of a descriptor in the set.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Token {
    /// SIGTERM, SIGINT or SIGHUP has come.
    Termination,
    /// A frontend connects.
    Listener,
    /// The frontend has sent something, has room for replies again, or is gone.
    Frontend,
    /// The driver has made requests available in a ring.
    Kick(u16),
    /// The device's own event of this number.
    Device(u32),
    /// The thread that waits is to look what has changed.
    Wake,
    /// The thread of a worker has ended.
    WorkerEnded,
}

impl Token {
    fn pack(self) -> EventData {
        let (kind, number) = match self {
            Self::Termination => (0, 0),
            Self::Listener => (1, 0),
            Self::Frontend => (2, 0),
            Self::Kick(ring) => (3, u32::from(ring)),
            Self::Device(event) => (4, event),
            Self::Wake => (5, 0),
            Self::WorkerEnded => (6, 0),
        };
        EventData::new_u64(u64::from(number) << 8 | kind)
    }

    fn unpack(data: EventData) -> Option<Self> {
        let number = data.u64() >> 8;
        match data.u64() & 0xff {
            0 => Some(Self::Termination),
            1 => Some(Self::Listener),
            2 => Some(Self::Frontend),
            3 => u16::try_from(number).ok().map(Self::Kick),
            4 => u32::try_from(number).ok().map(Self::Device),
            5 => Some(Self::Wake),
            6 => Some(Self::WorkerEnded),
            _ => None,
        }
    }
}

/// The descriptors that a thread waits on. All are edge-triggered: a kick costs no read(2), and half a message does not
/// make the loop spin.
#[derive(Debug)]
pub(crate) struct Poll {
    epoll: OwnedFd,
}

impl Poll {
    pub(crate) fn new() -> Result<Self, Errno> {
        Ok(Self {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
        })
    }

    pub(crate) fn add(&self, fd: impl AsFd, token: Token) -> Result<(), Errno> {
        let flags = match token {
            Token::Frontend => EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP,
            _ => EventFlags::IN,
        };
        epoll::add(&self.epoll, fd, token.pack(), flags | EventFlags::ET)
    }

    /// Must be called before the descriptor is closed: while another process has the same open file, closing it leaves
    /// it in the set.
    pub(crate) fn remove(&self, fd: impl AsFd) {
        // This fails only for a descriptor that is not in the set.
        let _ = epoll::delete(&self.epoll, fd);
    }

    /// Waits for events if `block`, else returns those that are there.
    pub(crate) fn wait(&self, block: bool) -> Result<Vec<Token>, Errno> {
        self.wait_for((!block).then_some(Duration::ZERO))
    }

    /// Waits for events, for no longer than `timeout`.
    pub(crate) fn wait_for(&self, timeout: Option<Duration>) -> Result<Vec<Token>, Errno> {
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let mut space = [MaybeUninit::<epoll::Event>::uninit(); 32];
        match epoll::wait(&self.epoll, &mut space, timeout.as_ref()) {
            Ok((events, _)) => Ok(events
                .iter()
                .filter_map(|event| Token::unpack(event.data))
                .collect()),
            Err(Errno::INTR) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}

/// The rings that get another turn without a kick, in order.
#[derive(Debug, Default)]
pub(crate) struct Again(VecDeque<u16>);

impl Again {
    pub(crate) fn add(&mut self, ring: u16) {
        if !self.0.contains(&ring) {
            self.0.push_back(ring);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn take(&mut self) -> VecDeque<u16> {
        std::mem::take(&mut self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back_as_they_went() {
        for token in [
            Token::Termination,
            Token::Listener,
            Token::Frontend,
            Token::Kick(u16::MAX),
            Token::Device(u32::MAX),
            Token::Wake,
            Token::WorkerEnded,
        ] {
            assert_eq!(Token::unpack(token.pack()), Some(token));
        }
    }

    #[test]
    fn an_event_is_reported_once_for_each_write() {
        let poll = Poll::new().unwrap();
        let kick = rustix::event::eventfd(0, rustix::event::EventfdFlags::empty()).unwrap();
        poll.add(&kick, Token::Kick(3)).unwrap();
        assert_eq!(poll.wait(false).unwrap(), []);

        for _ in 0..2 {
            rustix::io::write(&kick, &1u64.to_ne_bytes()).unwrap();
            assert_eq!(poll.wait(false).unwrap(), [Token::Kick(3)]);
            assert_eq!(poll.wait(false).unwrap(), []);
        }

        poll.remove(&kick);
        rustix::io::write(&kick, &1u64.to_ne_bytes()).unwrap();
        assert_eq!(poll.wait(false).unwrap(), []);
    }
}
