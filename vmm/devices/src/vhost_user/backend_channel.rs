//! The channel for requests of the backend (VHOST_USER_SET_BACKEND_REQ_FD). The only request served is
//! CONFIG_CHANGE_MSG.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use vhost::vhost_user::message::BackendReq;

use super::connection::Connection;
use super::error::{Fault, Result};

const HEADER: usize = 12;
/// No request is longer.
const MAX_BODY: usize = 4096;
const VERSION: u32 = 1;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;

/// The monitor's end of the channel.
pub(super) struct BackendChannel {
    socket: UnixStream,
    /// The beginning of the next message, as far as it was received.
    partial: Vec<u8>,
}

impl BackendChannel {
    /// Makes a channel and sends the backend its end.
    pub(super) fn open(connection: &Connection) -> Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        connection.set_backend_req_fd(theirs.as_raw_fd())?;
        Ok(Self {
            socket: ours,
            partial: Vec::new(),
        })
    }

    /// Reads what the backend has sent. Returns whether the configuration has changed. After an error the channel
    /// cannot be used.
    pub(super) fn read(&mut self) -> Result<bool> {
        let mut changed = false;
        let mut bytes = [0; 512];
        // At most one message of the maximum length is read, so that a backend that keeps sending does not hold the
        // caller.
        for _ in 0..8 {
            match self.socket.read(&mut bytes) {
                Ok(0) => return Err(Fault::Closed),
                Ok(count) => self.partial.extend(bytes.iter().take(count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
            while let Some(one) = self.message()? {
                changed |= one;
            }
        }
        Ok(changed)
    }

    /// Handles the next message, if it is complete. Returns whether it was CONFIG_CHANGE_MSG.
    fn message(&mut self) -> Result<Option<bool>> {
        let Some(&header) = self.partial.first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let [a, b, c, d, e, f, g, h, size @ ..] = header;
        let request = u32::from_ne_bytes([a, b, c, d]);
        let flags = u32::from_ne_bytes([e, f, g, h]);
        let size = u32::from_ne_bytes(size) as usize;
        if size > MAX_BODY || flags & REPLY != 0 {
            return Err(Fault::Options(
                "the backend's channel carries something else",
            ));
        }
        if self.partial.len() < HEADER + size {
            return Ok(None);
        }
        self.partial.drain(..HEADER + size);
        let known = request == u32::from(BackendReq::CONFIG_CHANGE_MSG);
        if flags & NEED_REPLY != 0 {
            let mut reply = Vec::with_capacity(HEADER + 8);
            for word in [request, VERSION | REPLY, 8] {
                reply.extend(word.to_ne_bytes());
            }
            reply.extend(u64::from(!known).to_ne_bytes());
            self.socket.write_all(&reply)?;
        }
        Ok(Some(known))
    }
}

impl AsFd for BackendChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for BackendChannel {
    fn drop(&mut self) {
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channel() -> (BackendChannel, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let channel = BackendChannel {
            socket: ours,
            partial: Vec::new(),
        };
        (channel, theirs)
    }

    fn message(request: u32, flags: u32, body: &[u8]) -> Vec<u8> {
        let mut message = Vec::new();
        for word in [request, VERSION | flags, body.len() as u32] {
            message.extend(word.to_ne_bytes());
        }
        message.extend(body);
        message
    }

    #[test]
    fn a_changed_configuration_is_noticed_however_it_comes() {
        let (mut channel, mut backend) = channel();
        let message = message(2, NEED_REPLY, &[]);
        for byte in &message[..11] {
            backend.write_all(&[*byte]).unwrap();
            assert!(!channel.read().unwrap());
        }
        backend.write_all(&message[11..]).unwrap();
        assert!(channel.read().unwrap());
        let mut reply = [0xff; 20];
        backend.read_exact(&mut reply).unwrap();
        assert_eq!(reply[12..], [0; 8]);
    }

    #[test]
    fn what_is_not_known_is_refused_and_what_is_no_message_ends_it() {
        let (mut channel, mut backend) = channel();
        backend
            .write_all(&message(9, NEED_REPLY, &[1; 40]))
            .unwrap();
        assert!(!channel.read().unwrap());
        let mut reply = [0; 20];
        backend.read_exact(&mut reply).unwrap();
        assert_eq!(reply[12], 1);

        backend.write_all(&[0xff; 12]).unwrap();
        assert!(channel.read().is_err());
        drop(backend);
        assert!(channel.read().is_err());
    }
}
