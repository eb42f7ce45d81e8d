//! The connection to the frontend: receives whole messages and sends replies, and no call waits.
//!
//! This uses the message structures of the `vhost` crate, but not its server, whose receive and send calls wait without
//! a limit for the rest of a message and for room, and retry after errors that do not pass, such as more descriptors
//! than they have space for. Here each call has `MSG_DONTWAIT`: unlike `O_NONBLOCK`, a peer that shares the open file
//! cannot change it. A part of a message that has arrived, and the rest of a reply that could not be sent, are kept
//! until the socket is ready again.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use vhost::vhost_user::message::{FrontendReq, MAX_ATTACHED_FD_ENTRIES, MAX_MSG_SIZE};
use vm_memory::ByteValued;

use crate::descriptors::Descriptors;

/// The bytes of a message header: request, flags, size.
const HEADER: usize = 12;
const VERSION: u32 = 1;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;

/// What [`Connection::receive`] found.
#[derive(Debug)]
pub(crate) enum Incoming {
    Message(Message),
    /// No whole message yet, or no room for the reply to the message before.
    Nothing,
    /// The frontend has disconnected.
    End,
}

/// A whole message.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) request: FrontendReq,
    /// The frontend wants to know whether the request succeeded. (REPLY_ACK)
    pub(crate) needs_reply: bool,
    pub(crate) body: Vec<u8>,
    pub(crate) files: Descriptors,
}

/// The reply to a message.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) body: Vec<u8>,
    pub(crate) file: Option<OwnedFd>,
}

impl Reply {
    pub(crate) fn new(body: &impl ByteValued) -> Self {
        Self {
            body: body.as_slice().to_vec(),
            file: None,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Connection {
    stream: UnixStream,
    partial: Partial,
    /// The part of a reply that is not sent yet.
    unsent: Vec<u8>,
    /// The reply's descriptor, which is sent with its first byte.
    unsent_file: Option<OwnedFd>,
}

/// The part of a message that has arrived.
#[derive(Debug, Default)]
struct Partial {
    header: [u8; HEADER],
    body: Vec<u8>,
    /// How many bytes of both have arrived.
    length: usize,
    files: Descriptors,
}

impl Connection {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            partial: Partial::default(),
            unsent: Vec::new(),
            unsent_file: None,
        }
    }

    /// Returns the next message, if all of it has arrived and the last reply is sent.
    ///
    /// # Errors
    /// What is wrong with the message or the socket. The connection cannot be used any more then.
    pub(crate) fn receive(&mut self) -> Result<Incoming, String> {
        if !self.flush()? {
            return Ok(Incoming::Nothing);
        }
        while !self.partial.is_whole() {
            match self.receive_some() {
                Ok(0) | Err(Errno::CONNRESET) => return Ok(Incoming::End),
                Ok(length) => self.partial.grow(length)?,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(Incoming::Nothing),
                Err(Errno::TOOBIG) => {
                    return Err(format!(
                        "a message came with more than {MAX_ATTACHED_FD_ENTRIES} descriptors, \
                         or more than this process can open"
                    ));
                }
                Err(error) => return Err(format!("cannot receive: {error}")),
            }
        }
        std::mem::take(&mut self.partial)
            .into_message()
            .map(Incoming::Message)
    }

    /// Receives more of the message, as much as has arrived. Fails with `TOOBIG` if descriptors were lost; the others
    /// are closed.
    fn receive_some(&mut self) -> Result<usize, Errno> {
        const SPACE: usize =
            rustix::cmsg_space!(ScmRights(MAX_ATTACHED_FD_ENTRIES), ScmCredentials(1));
        let mut space = [MaybeUninit::uninit(); SPACE];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut missing = [IoSliceMut::new(self.partial.missing())];
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received = recvmsg(&self.stream, &mut missing, &mut control, flags)?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(files) = message {
                self.partial.files.extend(files);
            }
        }
        let too_many = self.partial.files.len() > MAX_ATTACHED_FD_ENTRIES;
        if too_many || received.flags.contains(ReturnFlags::CTRUNC) {
            self.partial.files.clear();
            return Err(Errno::TOOBIG);
        }
        Ok(received.bytes)
    }

    /// Sends the reply to `request`, or as much of it as there is room for now.
    ///
    /// # Errors
    /// Why the socket cannot be used.
    pub(crate) fn reply(&mut self, request: FrontendReq, reply: Reply) -> Result<(), String> {
        let size = u32::try_from(reply.body.len()).map_err(|error| error.to_string())?;
        for word in [u32::from(request), VERSION | REPLY, size] {
            self.unsent.extend(word.to_ne_bytes());
        }
        self.unsent.extend(reply.body);
        self.unsent_file = reply.file;
        self.flush().map(drop)
    }

    /// Replies whether `request` succeeded.
    ///
    /// # Errors
    /// Why the socket cannot be used.
    pub(crate) fn acknowledge(&mut self, request: FrontendReq, done: bool) -> Result<(), String> {
        self.reply(request, Reply::new(&u64::from(!done)))
    }

    /// Sends what is left of the reply. Returns whether all of it is sent.
    fn flush(&mut self) -> Result<bool, String> {
        while !self.unsent.is_empty() {
            match self.send_some() {
                Ok(sent) => {
                    self.unsent.drain(..sent);
                    self.unsent_file = None;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(false),
                // `receive` returns the end of the connection once all messages were read.
                Err(Errno::PIPE | Errno::CONNRESET) => self.unsent.clear(),
                Err(error) => return Err(format!("cannot send: {error}")),
            }
        }
        Ok(true)
    }

    fn send_some(&self) -> Result<usize, Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let file = self.unsent_file.as_ref().map(|file| [file.as_fd()]);
        if let Some(file) = &file {
            // There is space for it.
            control.push(SendAncillaryMessage::ScmRights(file));
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        sendmsg(
            &self.stream,
            &[IoSlice::new(&self.unsent)],
            &mut control,
            flags,
        )
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Partial {
    fn word(&self, index: usize) -> u32 {
        let bytes = self.header.as_chunks().0.get(index);
        bytes.map_or(0, |bytes| u32::from_ne_bytes(*bytes))
    }

    /// The space for the rest of the message, and for no byte of the next one.
    fn missing(&mut self) -> &mut [u8] {
        let missing = match self.length.checked_sub(HEADER) {
            None => self.header.get_mut(self.length..),
            Some(length) => self.body.get_mut(length..),
        };
        missing.unwrap_or_default()
    }

    /// Counts `length` more bytes. An invalid header is refused before any of its body is read.
    fn grow(&mut self, length: usize) -> Result<(), String> {
        let before = self.length;
        self.length += length;
        if before < HEADER && self.length == HEADER {
            let size = self.word(2) as usize;
            if size > MAX_MSG_SIZE {
                return Err(format!(
                    "a message has {size} bytes, {MAX_MSG_SIZE} are possible"
                ));
            }
            self.request()?;
            self.body.resize(size, 0);
        }
        Ok(())
    }

    fn is_whole(&self) -> bool {
        self.length == HEADER + self.body.len()
    }

    fn request(&self) -> Result<FrontendReq, String> {
        let flags = self.word(1);
        if flags & !NEED_REPLY != VERSION {
            return Err(format!("a message has the flags {flags:#x}"));
        }
        let request = self.word(0);
        FrontendReq::try_from(request).map_err(|_| format!("there is no request {request}"))
    }

    fn into_message(self) -> Result<Message, String> {
        Ok(Message {
            request: self.request()?,
            needs_reply: self.word(1) & NEED_REPLY != 0,
            body: self.body,
            files: self.files,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};
    use std::io::{Read, Write};
    use std::time::Duration;

    fn pair() -> (Connection, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        (Connection::new(ours), theirs)
    }

    fn message(request: u32, flags: u32, body: &[u8]) -> Vec<u8> {
        let size = body.len() as u32;
        let mut bytes: Vec<u8> = [request, flags, size]
            .iter()
            .flat_map(|word| word.to_ne_bytes())
            .collect();
        bytes.extend_from_slice(body);
        bytes
    }

    /// Sends `bytes` with `number` descriptors.
    fn send(stream: &UnixStream, bytes: &[u8], number: usize) {
        let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let files = vec![event.as_fd(); number];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&files)));
        let sent = sendmsg(
            stream,
            &[IoSlice::new(bytes)],
            &mut control,
            SendFlags::empty(),
        );
        assert_eq!(sent, Ok(bytes.len()));
    }

    fn received(connection: &mut Connection) -> Message {
        match connection.receive() {
            Ok(Incoming::Message(message)) => message,
            other => panic!("{other:?}"),
        }
    }

    fn nothing(connection: &mut Connection) -> bool {
        matches!(connection.receive(), Ok(Incoming::Nothing))
    }

    #[test]
    fn a_message_is_taken_once_it_is_whole_and_not_a_byte_more() {
        let (mut ours, mut theirs) = pair();
        let bytes = message(2, VERSION | NEED_REPLY, &[7; 8]);
        for byte in &bytes[..bytes.len() - 1] {
            assert!(nothing(&mut ours));
            theirs.write_all(&[*byte]).unwrap();
        }
        assert!(nothing(&mut ours));
        theirs.write_all(&bytes[bytes.len() - 1..]).unwrap();
        theirs.write_all(&message(1, VERSION, &[])).unwrap();

        let first = received(&mut ours);
        assert_eq!(first.request, FrontendReq::SET_FEATURES);
        assert!(first.needs_reply);
        assert_eq!(first.body, [7; 8]);
        let second = received(&mut ours);
        assert_eq!(second.request, FrontendReq::GET_FEATURES);
        assert!(nothing(&mut ours));
    }

    #[test]
    fn descriptors_come_with_whatever_part_of_the_message_they_were_sent_with() {
        let bytes = message(13, VERSION, &[0; 8]);
        for at in [1, 3, HEADER, HEADER + 1] {
            let (mut ours, theirs) = pair();
            send(&theirs, &bytes[..at], 1);
            assert!(nothing(&mut ours));
            send(&theirs, &bytes[at..], 2);
            assert_eq!(received(&mut ours).files.len(), 3, "{at}");
        }
        let (mut ours, theirs) = pair();
        send(&theirs, &bytes, MAX_ATTACHED_FD_ENTRIES);
        assert_eq!(received(&mut ours).files.len(), MAX_ATTACHED_FD_ENTRIES);
    }

    #[test]
    fn too_many_descriptors_are_refused_wherever_they_are() {
        let bytes = message(13, VERSION, &[0; 8]);
        for number in [33, 34, 100, 253] {
            let (mut ours, theirs) = pair();
            send(&theirs, &bytes, number);
            let error = ours.receive().unwrap_err();
            assert!(error.contains("descriptors"), "{number}: {error}");
            assert!(ours.partial.files.is_empty());
        }
        // Few at a time.
        for (first, second) in [(32, 1), (1, 32), (17, 16), (0, 33)] {
            let (mut ours, theirs) = pair();
            send(&theirs, &bytes[..HEADER], first);
            assert!(nothing(&mut ours));
            send(&theirs, &bytes[HEADER..], second);
            assert!(ours.receive().is_err(), "{first} and {second}");
            assert!(ours.partial.files.is_empty());
        }
    }

    #[test]
    fn an_invalid_header_is_refused_without_its_body() {
        let mut long = message(2, VERSION, &[]);
        long[8..12].copy_from_slice(&(MAX_MSG_SIZE as u32 + 1).to_ne_bytes());
        for bytes in [
            long,
            message(0, VERSION, &[]),
            message(9999, VERSION, &[]),
            message(2, VERSION + 1, &[]),
            message(2, VERSION | REPLY, &[]),
            message(2, VERSION | 1 << 9, &[]),
        ] {
            let (mut ours, mut theirs) = pair();
            theirs.write_all(&bytes).unwrap();
            assert!(ours.receive().is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn the_end_is_seen_also_in_mid_message() {
        let bytes = message(2, VERSION, &[0; 8]);
        for length in [0, 1, HEADER, bytes.len() - 1] {
            let (mut ours, mut theirs) = pair();
            theirs.write_all(&bytes[..length]).unwrap();
            assert!(nothing(&mut ours));
            drop(theirs);
            assert!(matches!(ours.receive(), Ok(Incoming::End)));
        }
    }

    #[test]
    fn a_reply_is_sent_as_there_is_room_and_no_message_is_received_before() {
        let (mut ours, mut theirs) = pair();
        theirs.write_all(&message(1, VERSION, &[])).unwrap();
        let mut filled = 0;
        while let Ok(sent) = rustix::net::send(&ours, &[9; 4096], SendFlags::DONTWAIT) {
            filled += sent;
        }
        let event = eventfd(5, EventfdFlags::CLOEXEC).unwrap();
        let reply = Reply {
            body: vec![3; 8],
            file: Some(event),
        };
        ours.reply(FrontendReq::GET_INFLIGHT_FD, reply).unwrap();
        assert!(nothing(&mut ours), "the last reply is not sent yet");

        theirs.read_exact(&mut vec![0; filled]).unwrap();
        assert_eq!(received(&mut ours).request, FrontendReq::GET_FEATURES);
        let mut bytes = [0; HEADER + 8];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let into = &mut [IoSliceMut::new(&mut bytes)];
        recvmsg(&theirs, into, &mut control, RecvFlags::empty()).unwrap();
        assert_eq!(
            bytes.as_slice(),
            message(31, VERSION | REPLY, &[3; 8]),
            "GET_INFLIGHT_FD"
        );
        let files = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(files) => Some(files.count()),
            _ => None,
        });
        assert_eq!(files.sum::<usize>(), 1);
    }

    #[test]
    fn a_frontend_that_is_gone_is_no_error_of_the_reply() {
        let (mut ours, theirs) = pair();
        drop(theirs);
        ours.acknowledge(FrontendReq::SET_OWNER, true).unwrap();
        assert!(matches!(ours.receive(), Ok(Incoming::End)));
    }
}
