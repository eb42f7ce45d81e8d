//! What can be wrong with a backend.

use std::io;
use std::path::PathBuf;

use rustix::io::Errno;
use thiserror::Error;
use vhost::vhost_user::message::FrontendReq;

/// A backend that cannot be used, and why.
#[derive(Debug, Error)]
#[error("{}: {fault}", socket.display())]
pub struct FrontendError {
    /// The backend's socket.
    pub socket: PathBuf,
    /// What is wrong.
    pub fault: Fault,
}

impl FrontendError {
    /// No connection to the socket can be made, ever.
    #[must_use]
    pub fn connecting(socket: PathBuf, error: io::Error) -> Self {
        let fault = match Errno::from_io_error(&error) {
            Some(Errno::NAMETOOLONG) => Fault::PathTooLong,
            _ => Fault::Io(error),
        };
        Self { socket, fault }
    }
}

/// What is wrong with a backend.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Fault {
    /// There is nothing at the path.
    #[error("no such socket: is the backend running?")]
    Missing,
    /// What is at the path is no socket.
    #[error("not a socket")]
    NotASocket,
    /// The socket at the path is one of packets.
    #[error("not vhost-user: a socket of packets")]
    NotAStream,
    /// The path does not fit in a socket address.
    #[error("the path is too long for a socket: at most 107 bytes")]
    PathTooLong,
    /// The socket is there, but nobody listens.
    #[error("nobody listens on this socket: is the backend running?")]
    NobodyListens,
    /// The backend has not taken up the connections it already has.
    #[error("the backend takes no more connections: is it busy with another frontend?")]
    Busy,
    /// The backend closed the connection.
    #[error("the backend closed the connection")]
    Closed,
    /// The backend did not answer in time.
    #[error("the backend did not answer {0:?} in time: is it a vhost-user backend?")]
    TimedOut(FrontendReq),
    /// The answer is not what vhost-user prescribes.
    #[error("not vhost-user: the answer to {0:?} {1}")]
    Malformed(FrontendReq, &'static str),
    /// The backend answered that it failed.
    #[error("the backend refused {0:?}")]
    Refused(FrontendReq),
    /// The backend has not what it takes.
    #[error("the backend does not offer {0}")]
    Lacks(&'static str),
    /// A backend that came back offers less than the one before it.
    #[error("the backend came back without features the guest is using: {0:#x}")]
    LostFeatures(u64),
    /// Fewer queues were asked for than a device of this type has.
    #[error("{wanted} queues are too few: a device of this type has at least {least}")]
    TooFewQueues {
        /// How many were asked for.
        wanted: u16,
        /// How many there must be.
        least: u16,
    },
    /// More queues were asked for than there are.
    #[error("{wanted} queues are too many: the backend has {has}")]
    TooManyQueues {
        /// How many were asked for.
        wanted: u16,
        /// How many there are.
        has: u64,
    },
    /// The backend refused queues of that length, and did not come back.
    #[error("the backend refused the length of its queues and is gone: give a smaller queue_size")]
    QueuesTooLong,
    /// A backend died, and it is not known which requests it had not answered.
    #[error(
        "the backend died with requests under way, keeps no notes of them, and there were too many to follow: the guest must reset the device"
    )]
    Forgotten,
    /// Something in the options cannot be.
    #[error("{0}")]
    Options(&'static str),
    /// Guest memory cannot be shared.
    #[error("guest memory is not backed by a file, or has too many regions to share")]
    Memory,
    /// The operating system failed.
    #[error("{0}")]
    Io(#[from] io::Error),
}

pub(super) type Result<T> = std::result::Result<T, Fault>;
