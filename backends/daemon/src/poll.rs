//! What a loop waits for.

use std::collections::VecDeque;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;

/// What has happened.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Token {
    /// The program is told to end.
    Termination,
    /// A frontend connects.
    Listener,
    /// The frontend has sent something, takes answers again, or is gone.
    Frontend,
    /// The driver has made requests available in a ring.
    Kick(u16),
    /// The device's own event of this number.
    Device(u32),
    /// The thread that waits is wanted.
    Wake,
    /// A thread has ended.
    Alarm,
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
            Self::Alarm => (6, 0),
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
            6 => Some(Self::Alarm),
            _ => None,
        }
    }
}

/// The descriptors that are watched. All of them edge-triggered: a kick costs no read(2), and half a message no spinning.
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

    /// To be called before a descriptor is closed: its other end may keep the registration alive.
    pub(crate) fn remove(&self, fd: impl AsFd) {
        // It fails only for what is not registered.
        let _ = epoll::delete(&self.epoll, fd);
    }

    /// Waits for something to happen, or only looks.
    pub(crate) fn wait(&self, block: bool) -> Result<Vec<Token>, Errno> {
        self.wait_for((!block).then_some(Duration::ZERO))
    }

    /// Waits for something to happen, and no longer than that.
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
            Token::Alarm,
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
