//! One end of a connection, over which messages with files are sent.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;

use crate::{Error, MAX_MESSAGE, MAX_QUEUES, encode};

/// The most files that one message can have.
const MAX_FILES: usize = MAX_QUEUES as usize;

/// One end of a connection.
#[derive(Debug)]
pub struct Channel(OwnedFd);

/// A message as it was received: bytes for [`crate::decode`], and files.
#[derive(Debug)]
pub struct Packet {
    /// The message.
    pub bytes: Vec<u8>,
    /// The files, in the order in which they were sent.
    pub files: Vec<OwnedFd>,
}

impl Channel {
    /// Wraps a connected `SOCK_SEQPACKET` socket.
    pub fn new(socket: OwnedFd) -> Self {
        Channel(socket)
    }

    /// Sends one message.
    pub fn send<T: Serialize>(&self, message: &T, files: &[BorrowedFd<'_>]) -> Result<(), Error> {
        let bytes = encode(message)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !files.is_empty() && !control.push(SendAncillaryMessage::ScmRights(files)) {
            return Err(Error::protocol(format!(
                "more than {MAX_FILES} files with one message"
            )));
        }
        let sent = rustix::io::retry_on_intr(|| {
            sendmsg(
                &self.0,
                &[IoSlice::new(&bytes)],
                &mut control,
                SendFlags::NOSIGNAL,
            )
        });
        sent.map(drop)
            .map_err(|e| Error::io("cannot send to the other end of the connection", e))
    }

    /// Receives one message; `None` when the peer has closed the connection.
    ///
    /// On a non-blocking socket without a message, the error's source is [`std::io::ErrorKind::WouldBlock`].
    pub fn receive(&self) -> Result<Option<Packet>, Error> {
        let mut bytes = vec![0; MAX_MESSAGE];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::io::retry_on_intr(|| {
            recvmsg(
                &self.0,
                &mut [IoSliceMut::new(&mut bytes)],
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            )
        });
        // Take the files first, so that they are closed if an error is returned below.
        let mut files = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                files.extend(rights);
            }
        }
        let received = match received {
            Ok(received) => received,
            Err(Errno::CONNRESET) => return Ok(None),
            Err(e) => {
                return Err(Error::io(
                    "cannot receive from the other end of the connection",
                    e,
                ));
            }
        };
        // The buffer has room for all files, so files are missing only if this process can have no more descriptors.
        if received.flags.contains(ReturnFlags::CTRUNC) && files.len() < MAX_FILES {
            return Err(Error::io(
                "cannot receive the files of a message",
                Errno::MFILE,
            ));
        }
        if received
            .flags
            .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
        {
            return Err(Error::protocol(format!(
                "a message of more than {MAX_MESSAGE} bytes or {MAX_FILES} files"
            )));
        }
        if received.bytes == 0 {
            return Ok(None);
        }
        bytes.truncate(received.bytes);
        Ok(Some(Packet { bytes, files }))
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<Channel> for OwnedFd {
    fn from(channel: Channel) -> OwnedFd {
        channel.0
    }
}
