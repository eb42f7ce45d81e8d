//! The asking side.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_peercred};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::process::{PidfdFlags, getpid, pidfd_open};

use crate::{Channel, Error, ErrorKind, Packet, Reply, Request, TapInfo, TapRequest, decode};

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

/// A hold that was asked for and not answered yet; readable when the answer is there.
#[derive(Debug)]
pub struct PendingHold(Channel);

/// Keeps the helper from being idle, as long as this value lives; becomes readable (end of file) when the helper goes
/// away.
#[derive(Debug)]
pub struct Hold(Channel);

impl From<Connection> for OwnedFd {
    fn from(connection: Connection) -> Self {
        connection.0.into()
    }
}

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
        ask(&self.channel, &Request::Tap(request.clone()))?;
        let packet = answer(&self.channel)?;
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
            reply => Err(unexpected(reply)),
        }
    }

    /// Asks for a hold, and does not wait for the answer.
    pub fn request_hold(self) -> Result<PendingHold, Error> {
        ask(&self.channel, &Request::Hold)?;
        Ok(PendingHold(self.channel))
    }
}

impl PendingHold {
    /// Takes the answer.
    pub fn finish(self) -> Result<Hold, Error> {
        match decode(&answer(&self.0)?.bytes)? {
            Reply::Held => Ok(Hold(self.0)),
            reply => Err(unexpected(reply)),
        }
    }
}

impl Hold {
    /// Ends the hold. If the helper ends now that nobody needs it, waits, up to `patience`, until it has undone
    /// everything and then until its process is gone. Says whether it ends.
    pub fn release(self, patience: Duration) -> Result<bool, Error> {
        let process = peer_process(&self.0);
        ask(&self.0, &Request::Release)?;
        let Reply::Released { ends } = decode(&answer(&self.0)?.bytes)? else {
            return Err(Error::protocol("another answer than was asked for".into()));
        };
        if ends {
            set_socket_timeout(&self.0, Timeout::Recv, Some(patience))
                .map_err(|e| Error::io("cannot limit how long to wait", e))?;
            match answer(&self.0) {
                Err(error) if error.kind() == ErrorKind::Closed => {}
                Err(error) => return Err(error),
                Ok(_) => return Err(Error::protocol("more answers than were asked for".into())),
            }
            if let Some(process) = process {
                // The kernel closes the connection before the process is gone. That takes moments, and nothing depends
                // on it.
                let patience = Timespec::try_from(patience).ok();
                let _ = poll(
                    &mut [PollFd::new(&process, PollFlags::IN)],
                    patience.as_ref(),
                );
            }
        }
        Ok(ends)
    }
}

/// The process that listens, where it can be seen and is another one: a pair of sockets has no other process.
fn peer_process(socket: impl AsFd) -> Option<OwnedFd> {
    let peer = socket_peercred(socket).ok()?.pid;
    // Of a process namespace in which it has no number, it is 0.
    if peer.as_raw_pid() <= 0 || peer == getpid() {
        return None;
    }
    pidfd_open(peer, PidfdFlags::empty()).ok()
}

/// A helper that has just ended reads no more, which is the same as that it does not answer.
fn ask(channel: &Channel, request: &Request) -> Result<(), Error> {
    channel
        .send(request, &[])
        .map_err(|error| match errno(&error) {
            Some(Errno::PIPE | Errno::CONNRESET) => Error::closed(),
            _ => error,
        })
}

fn answer(channel: &Channel) -> Result<Packet, Error> {
    channel.receive().map_err(slow)?.ok_or_else(Error::closed)
}

fn unexpected(reply: Reply) -> Error {
    match reply {
        Reply::Refused(refusal) => Error::refused(refusal),
        _ => Error::protocol("another answer than was asked for".into()),
    }
}

fn errno(error: &Error) -> Option<Errno> {
    let source = std::error::Error::source(error).and_then(|e| e.downcast_ref::<std::io::Error>());
    source.and_then(Errno::from_io_error)
}

fn slow(error: Error) -> Error {
    match errno(&error) {
        Some(Errno::AGAIN) => Error::protocol(format!(
            "bulkhead-net-helper has not answered for {PATIENCE:?}"
        )),
        _ => error,
    }
}

impl AsFd for PendingHold {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsFd for Hold {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
