//! A connection to a backend: sends requests and receives replies, before a deadline.
//!
//! The message structures are those of the `vhost` crate. Its `Frontend` is not used, because it waits for ever for a
//! backend that has stopped answering (it tries again when the socket times out), and checks replies less than a
//! hostile backend requires.

use std::cell::Cell;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketAddrUnix,
    SocketFlags, SocketType, recvmsg, socket_with,
};
use vhost::vhost_user::message::FrontendReq;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::config::Connector;
use super::error::{Fault, Result};

/// How long a backend may take for all replies of one step, such as the negotiation or the start of its vrings.
pub(super) const STEP_TIMEOUT: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });
/// How long a backend may take to complete the requests in flight when its vrings are stopped.
pub(super) const DRAIN_TIMEOUT: Duration = Duration::from_secs(60);

const HEADER: usize = 12;
/// The longest reply: a configuration space with its header.
const MAX_BODY: usize = 4096;
const MAX_FDS: usize = 8;

const VERSION: u32 = 1;
const VERSION_MASK: u32 = 3;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;

/// A reply: its bytes, and the first descriptor that came with it.
pub(super) struct Reply {
    pub(super) body: Vec<u8>,
    pub(super) fd: Option<OwnedFd>,
}

/// Connects to the socket at `path`, without waiting.
///
/// # Errors
/// Those of connect(2).
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(path)?;
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    rustix::net::connect(&socket, &address)?;
    Ok(UnixStream::from(socket))
}

pub(super) struct Connection {
    socket: UnixStream,
    /// When the current step must be over. It is one deadline for all replies of the step, so that a backend that is
    /// slow at each of them cannot take longer.
    deadline: Cell<Instant>,
    /// REPLY_ACK was negotiated: the backend replies to every request.
    reply_ack: bool,
}

impl Connection {
    /// Connects to the backend at `path` with `connector`.
    pub(super) fn open(path: &Path, connector: &Connector) -> Result<Self> {
        let failed = |error: io::Error| match Errno::from_io_error(&error) {
            Some(Errno::NOENT) => Fault::Missing,
            Some(Errno::NAMETOOLONG) => Fault::PathTooLong,
            Some(Errno::PROTOTYPE) => Fault::NotAStream,
            Some(Errno::AGAIN) => Fault::Busy,
            Some(Errno::CONNREFUSED) => match std::fs::metadata(path) {
                Ok(file) if !file.file_type().is_socket() => Fault::NotASocket,
                _ => Fault::NobodyListens,
            },
            _ => Fault::Io(error),
        };
        connector().map(Self::new).map_err(failed)
    }

    fn new(socket: UnixStream) -> Self {
        Self {
            socket,
            deadline: Cell::new(Instant::now() + STEP_TIMEOUT),
            reply_ack: false,
        }
    }

    /// Begins a step that must be over in `time`.
    pub(super) fn set_deadline(&self, time: Duration) {
        self.deadline.set(Instant::now() + time);
    }

    /// Begins to expect a reply to every request (REPLY_ACK).
    pub(super) fn enable_reply_ack(&mut self) {
        self.reply_ack = true;
    }

    /// Whether the backend replies to every request.
    pub(super) fn has_reply_ack(&self) -> bool {
        self.reply_ack
    }

    /// A clone of the socket, by which another thread can end the connection.
    pub(super) fn try_clone_socket(&self) -> Result<UnixStream> {
        Ok(self.socket.try_clone()?)
    }

    /// Sends a request whose only reply is that of REPLY_ACK.
    pub(super) fn send_request(
        &self,
        request: FrontendReq,
        body: &[u8],
        fds: &[RawFd],
    ) -> Result<()> {
        let flags = if self.reply_ack { NEED_REPLY } else { 0 };
        self.send_message(request, flags, body, fds)?;
        if !self.reply_ack {
            return Ok(());
        }
        let reply = self.receive(request)?;
        match <[u8; 8]>::try_from(&*reply.body) {
            Ok(code) if u64::from_ne_bytes(code) == 0 => Ok(()),
            Ok(_) => Err(Fault::Refused(request)),
            Err(_) => Err(Fault::Malformed(request, "has the wrong size")),
        }
    }

    /// Sends a request and returns its reply. The caller checks the reply's size.
    pub(super) fn request(&self, request: FrontendReq, body: &[u8]) -> Result<Reply> {
        self.send_message(request, 0, body, &[])?;
        self.receive(request)
    }

    fn send_message(
        &self,
        request: FrontendReq,
        flags: u32,
        body: &[u8],
        fds: &[RawFd],
    ) -> Result<()> {
        let size = u32::try_from(body.len()).map_err(|_| Fault::Options("oversized message"))?;
        let mut message = Vec::with_capacity(HEADER + body.len());
        for word in [u32::from(request), VERSION | flags, size] {
            message.extend(word.to_ne_bytes());
        }
        message.extend(body);
        let (mut sent, mut fds) = (0, fds);
        while let Some(rest) = message.get(sent..).filter(|rest| !rest.is_empty()) {
            match self.socket.send_with_fds(&[rest], fds) {
                Ok(bytes) => {
                    sent += bytes;
                    fds = &[];
                }
                Err(error) => match Errno::from_raw_os_error(error.errno()) {
                    Errno::INTR => {}
                    Errno::AGAIN => self.wait(PollFlags::OUT, request)?,
                    Errno::PIPE | Errno::CONNRESET => return Err(Fault::Closed),
                    other => return Err(Fault::Io(other.into())),
                },
            }
        }
        Ok(())
    }

    fn receive(&self, request: FrontendReq) -> Result<Reply> {
        let mut header = [0; HEADER];
        let fd = self.receive_exact(&mut header, request)?;
        let [a, b, c, d, e, f, g, h, size @ ..] = header;
        let code = u32::from_ne_bytes([a, b, c, d]);
        let flags = u32::from_ne_bytes([e, f, g, h]);
        let size = u32::from_ne_bytes(size) as usize;
        if code != u32::from(request) {
            return Err(Fault::Malformed(request, "has another request's number"));
        }
        if flags & VERSION_MASK != VERSION || flags & REPLY == 0 {
            return Err(Fault::Malformed(request, "is no reply"));
        }
        if size > MAX_BODY {
            return Err(Fault::Malformed(request, "is too long"));
        }
        let mut body = vec![0; size];
        let late = self.receive_exact(&mut body, request)?;
        let fd = fd.or(late);
        Ok(Reply { body, fd })
    }

    /// Fills `data`; returns the first descriptor that came along and closes the others.
    fn receive_exact(&self, data: &mut [u8], request: FrontendReq) -> Result<Option<OwnedFd>> {
        let (mut first, mut got) = (None, 0);
        while let Some(rest) = data.get_mut(got..).filter(|rest| !rest.is_empty()) {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut buffers = [IoSliceMut::new(rest)];
            let received = recvmsg(
                &self.socket,
                &mut buffers,
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            );
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(fds) = message {
                    for fd in fds {
                        first.get_or_insert(fd);
                    }
                }
            }
            match received {
                Ok(message) if message.bytes == 0 => return Err(Fault::Closed),
                Ok(message) => got += message.bytes,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.wait(PollFlags::IN, request)?,
                Err(Errno::CONNRESET) => return Err(Fault::Closed),
                Err(other) => return Err(Fault::Io(other.into())),
            }
        }
        Ok(first)
    }

    fn wait(&self, events: PollFlags, request: FrontendReq) -> Result<()> {
        let left = self
            .deadline
            .get()
            .saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Fault::TimedOut(request));
        }
        let timeout = Timespec::try_from(left).unwrap_or(Timespec {
            tv_sec: 1,
            tv_nsec: 0,
        });
        let mut fds = [PollFd::new(&self.socket, events)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) => Err(Fault::TimedOut(request)),
            // An error of the socket is returned by the next call on it.
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(other) => Err(Fault::Io(other.into())),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // The socket has clones, so closing this descriptor would not end the connection.
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
#[path = "connection_tests.rs"]
mod tests;
