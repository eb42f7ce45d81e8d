//! The client's side of a connection.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_peercred};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::process::{PidfdFlags, getpid, pidfd_open};

use crate::{
    AddressRequest, Addresses, Channel, Error, ErrorKind, Packet, Reply, Request, TapInfo,
    TapRequest, decode,
};

/// How long to wait for a reply, which usually takes milliseconds.
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection to the helper, before its first request.
#[derive(Debug)]
pub struct Client {
    channel: Channel,
}

/// A TAP device. The helper removes it when this value, and with it the connection, is dropped.
#[derive(Debug)]
pub struct Lease {
    /// The description of the device.
    pub info: TapInfo,
    /// The TAP device, one file for each queue.
    pub queues: Vec<OwnedFd>,
    /// The connection that is the lease; readable (end of file) when the helper has ended.
    pub connection: Connection,
}

/// The connection that is the lease. The helper removes the TAP device when it is dropped.
#[derive(Debug)]
pub struct Connection(Channel);

/// A hold that was requested; readable when the reply has arrived.
#[derive(Debug)]
pub struct PendingHold(Channel);

/// Keeps a helper with `--exit-idle` from ending until it is dropped; readable (end of file) when the helper has ended.
#[derive(Debug)]
pub struct Hold(Channel);

impl From<Connection> for OwnedFd {
    fn from(connection: Connection) -> Self {
        connection.0.into()
    }
}

impl Client {
    /// Connects to the helper that listens at a path.
    pub fn connect(path: &Path) -> Result<Self, Error> {
        let address = SocketAddrUnix::new(path).map_err(|e| Error::connect(path, e))?;
        let socket = socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(|e| Error::io("cannot open a socket", e))?;
        set_timeouts(&socket, REPLY_TIMEOUT)?;
        connect(&socket, &address).map_err(|e| Error::connect(path, e))?;
        Ok(Client {
            channel: Channel::new(socket),
        })
    }

    /// Uses a socket that is connected to a helper.
    pub fn from_socket(socket: OwnedFd) -> Self {
        Client {
            channel: Channel::new(socket),
        }
    }

    /// Requests a TAP device and waits for the reply, for at most 10 seconds.
    pub fn request_tap(self, request: &TapRequest) -> Result<Lease, Error> {
        send_request(&self.channel, &Request::Tap(request.clone()), REPLY_TIMEOUT)?;
        let packet = receive_reply(&self.channel, REPLY_TIMEOUT)?;
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

    /// Requests the addresses that a guest has by DHCP, and waits for the reply, for at most 10 seconds.
    pub fn request_addresses(&self, request: &AddressRequest) -> Result<Addresses, Error> {
        let request = Request::Addresses(request.clone());
        send_request(&self.channel, &request, REPLY_TIMEOUT)?;
        match decode(&receive_reply(&self.channel, REPLY_TIMEOUT)?.bytes)? {
            Reply::Addresses(addresses) => Ok(addresses),
            reply => Err(unexpected(reply)),
        }
    }

    /// Requests a hold, and does not wait for the reply.
    pub fn request_hold(self) -> Result<PendingHold, Error> {
        send_request(&self.channel, &Request::Hold, REPLY_TIMEOUT)?;
        Ok(PendingHold(self.channel))
    }
}

impl PendingHold {
    /// Waits for the reply.
    pub fn finish(self) -> Result<Hold, Error> {
        match decode(&receive_reply(&self.0, REPLY_TIMEOUT)?.bytes)? {
            Reply::Held => Ok(Hold(self.0)),
            reply => Err(unexpected(reply)),
        }
    }
}

impl Hold {
    /// Ends the hold. If this was the last one and the helper ends, waits until it has removed everything and its
    /// process is gone. Each of the three waits, the first for the reply, is for at most `timeout`, which must not be
    /// zero. Returns whether the helper ends.
    pub fn release(self, timeout: Duration) -> Result<bool, Error> {
        let process = peer_process(&self.0);
        set_timeouts(&self.0, timeout)?;
        send_request(&self.0, &Request::Release, timeout)?;
        let Reply::Released { ends } = decode(&receive_reply(&self.0, timeout)?.bytes)? else {
            return Err(Error::protocol("another answer than was asked for".into()));
        };
        if ends {
            match receive_reply(&self.0, timeout) {
                Err(error) if error.kind() == ErrorKind::Closed => {}
                Err(error) => return Err(error),
                Ok(_) => return Err(Error::protocol("more answers than were asked for".into())),
            }
            if let Some(process) = process {
                // The kernel closes the connection shortly before the process is gone. An error is ignored: nothing
                // depends on the process.
                let timeout = Timespec::try_from(timeout).ok();
                let _ = poll(
                    &mut [PollFd::new(&process, PollFlags::IN)],
                    timeout.as_ref(),
                );
            }
        }
        Ok(ends)
    }
}

/// The process that listens. `None` if it is not visible here, or is this process, as with a socket pair.
fn peer_process(socket: impl AsFd) -> Option<OwnedFd> {
    let peer = socket_peercred(socket).ok()?.pid;
    // The number is 0 for a process that has none in this PID namespace.
    if peer.as_raw_pid() <= 0 || peer == getpid() {
        return None;
    }
    pidfd_open(peer, PidfdFlags::empty()).ok()
}

/// Limits how long to wait for the helper, in each direction.
fn set_timeouts(socket: impl AsFd, timeout: Duration) -> Result<(), Error> {
    for direction in [Timeout::Recv, Timeout::Send] {
        set_socket_timeout(&socket, direction, Some(timeout))
            .map_err(|e| Error::io("cannot limit how long to wait", e))?;
    }
    Ok(())
}

/// Sends a request. If the helper has ended before it reads the request, the error is the same as if it had ended
/// before its reply.
fn send_request(channel: &Channel, request: &Request, timeout: Duration) -> Result<(), Error> {
    let sent = channel.send(request, &[]);
    sent.map_err(|error| match errno(&error) {
        Some(Errno::PIPE | Errno::CONNRESET) => Error::closed(),
        _ => timed_out(error, timeout),
    })
}

fn receive_reply(channel: &Channel, timeout: Duration) -> Result<Packet, Error> {
    let received = channel.receive();
    received
        .map_err(|error| timed_out(error, timeout))?
        .ok_or_else(Error::closed)
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

fn timed_out(error: Error, timeout: Duration) -> Error {
    match errno(&error) {
        Some(Errno::AGAIN) => Error::protocol(format!(
            "bulkhead-net-helper has not answered for {timeout:?}"
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
