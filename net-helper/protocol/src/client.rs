//! The asking side.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use crate::{Channel, Error, Reply, Request, TapInfo, TapRequest, decode};

/// How long the helper may take to answer. It does little and waits for nobody.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection to the helper on which nothing has been asked yet.
#[derive(Debug)]
pub struct Client {
    channel: Channel,
}

/// A TAP device, for as long as this value (its connection, that is) lives.
#[derive(Debug)]
pub struct Lease {
    /// What was given.
    pub info: TapInfo,
    /// The TAP device, one file per queue.
    pub queues: Vec<OwnedFd>,
    /// Keeps the lease; becomes readable (end of file) when the helper goes away.
    pub connection: Connection,
}

/// The connection that is the lease. Dropping it gives the TAP device back.
#[derive(Debug)]
pub struct Connection(Channel);

impl Client {
    /// Connects to the helper that listens on a socket.
    pub fn connect(path: &Path) -> Result<Self, Error> {
        let address = SocketAddrUnix::new(path).map_err(|e| Error::connect(path, e))?;
        let socket = socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(|e| Error::io("cannot open a socket", e))?;
        for timeout in [Timeout::Recv, Timeout::Send] {
            set_socket_timeout(&socket, timeout, Some(PATIENCE))
                .map_err(|e| Error::io("cannot limit how long to wait", e))?;
        }
        connect(&socket, &address).map_err(|e| Error::connect(path, e))?;
        Ok(Client {
            channel: Channel::new(socket),
        })
    }

    /// Takes a socket that is already connected to a helper.
    pub fn from_socket(socket: OwnedFd) -> Self {
        Client {
            channel: Channel::new(socket),
        }
    }

    /// Asks for a TAP device. Waits for the answer, but not for ever.
    pub fn request_tap(self, request: &TapRequest) -> Result<Lease, Error> {
        self.channel.send(&Request::Tap(request.clone()), &[])?;
        let packet = self.channel.receive().map_err(slow)?;
        let packet = packet
            .ok_or_else(|| Error::protocol("bulkhead-net-helper closed the connection".into()))?;
        match decode::<Reply>(&packet.bytes)? {
            Reply::Tap(info) if packet.files.len() == usize::from(request.queues) => Ok(Lease {
                info,
                queues: packet.files,
                connection: Connection(self.channel),
            }),
            Reply::Tap(_) => {
                let (got, want) = (packet.files.len(), request.queues);
                Err(Error::protocol(format!(
                    "bulkhead-net-helper gave {got} queues instead of {want}"
                )))
            }
            Reply::Refused(refusal) => Err(Error::refused(refusal)),
        }
    }
}

fn slow(error: Error) -> Error {
    let source = std::error::Error::source(&error).and_then(|e| e.downcast_ref::<std::io::Error>());
    match source.and_then(Errno::from_io_error) {
        Some(Errno::AGAIN) => Error::protocol(format!(
            "bulkhead-net-helper has not answered for {PATIENCE:?}"
        )),
        _ => error,
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
