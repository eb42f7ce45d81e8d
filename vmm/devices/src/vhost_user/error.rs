//! Why a backend cannot be used.

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
    /// The broker refuses to connect to the socket.
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
    /// The path does not exist.
    #[error("no such socket: is the backend running, or does it serve another monitor already?")]
    Missing,
    /// The file at the path is not a socket.
    #[error("not a socket")]
    NotASocket,
    /// The socket at the path is not a stream socket.
    #[error("not vhost-user: a socket of packets")]
    NotAStream,
    /// The path does not fit in a socket address.
    #[error("the path is too long for a socket: at most 107 bytes")]
    PathTooLong,
    /// The socket exists, but no process listens on it.
    #[error("nobody listens on this socket: is the backend running?")]
    NobodyListens,
    /// The backend's queue of connections is full.
    #[error("the backend takes no more connections: is it busy with another frontend?")]
    Busy,
    /// The backend closed the connection.
    #[error("the backend closed the connection")]
    Closed,
    /// The backend did not answer in time.
    #[error("the backend did not answer {0:?} in time: is it a vhost-user backend?")]
    TimedOut(FrontendReq),
    /// The reply is not one that vhost-user allows.
    #[error("not vhost-user: the answer to {0:?} {1}")]
    Malformed(FrontendReq, &'static str),
    /// The backend replied that the request failed.
    #[error("the backend refused {0:?}")]
    Refused(FrontendReq),
    /// The backend does not offer a feature that is needed.
    #[error("the backend does not offer {0}")]
    Lacks(&'static str),
    /// A backend that came back does not offer features that the driver has accepted.
    #[error("the backend came back without features the guest is using: {0:#x}")]
    LostFeatures(u64),
    /// The configuration has fewer queues than a device of this type.
    #[error("{wanted} queues are too few: a device of this type has at least {least}")]
    TooFewQueues {
        /// The number in the configuration.
        wanted: u16,
        /// The least number a device of this type has.
        least: u16,
    },
    /// The configuration has more queues than the backend.
    #[error("{wanted} queues are too many: the backend has {has}")]
    TooManyQueues {
        /// The number in the configuration.
        wanted: u16,
        /// The number the backend has.
        has: u64,
    },
    /// The backend refused the size of its queues, and did not come back.
    #[error("the backend refused the length of its queues and is gone: give a smaller queue_size")]
    QueuesTooLong,
    /// A backend died, and it is not known which requests were in flight.
    #[error(
        "the backend died with requests under way, keeps no notes of them, and there were too many to follow: the guest must reset the device"
    )]
    Forgotten,
    /// An option has a value that is not possible.
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
