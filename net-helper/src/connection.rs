//! The end of connections, and what comes over them that nobody asked for.
//!
//! A client can send open files, and closing the last copy of a file can take as long as the client likes (a TCP socket that lingers). The
//! kernel does that on behalf of whoever receives the message or closes the socket that it waits at. So a message with files is never
//! received, and a socket with such messages is closed by a thread of its own, which counts against the client's user.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};

use bulkhead_net_protocol::Channel;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::set_socket_passcred;
use rustix::net::{RecvAncillaryBuffer, RecvFlags, ReturnFlags, Shutdown, recv, recvmsg, shutdown};

/// What is to be received next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Nothing yet.
    Nothing,
    Message,
    /// A message with files.
    Files,
    /// Nothing any more.
    End,
}

/// How long a client gets to receive what it was told.
const PATIENCE: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// Has the kernel say with each message whose it is, also if there is nothing in it; the end is nobody's. For [`peek`], on a connection or
/// on the socket that it is accepted from.
pub(crate) fn mark_messages(socket: &impl AsFd) -> rustix::io::Result<()> {
    set_socket_passcred(socket, true)
}

/// Looks at the next message, without receiving it.
pub(crate) fn peek(connection: &impl AsFd) -> Next {
    // Where there is no room for whose it is, the kernel says so; and where there is just room for that, that there are files.
    let mut whose = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
    match look(connection, &mut []) {
        Err(Errno::AGAIN) => Next::Nothing,
        Ok(true) => match look(connection, &mut whose) {
            Ok(true) => Next::Files,
            _ => Next::Message,
        },
        Ok(false) | Err(_) => Next::End,
    }
}

/// Whether what comes with the next message has no room.
fn look(connection: &impl AsFd, room: &mut [MaybeUninit<u8>]) -> Result<bool, Errno> {
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    let mut control = RecvAncillaryBuffer::new(room);
    let mut look = || recvmsg(connection, &mut [], &mut control, flags);
    let mut received = look();
    // That the client has not received everything is said once, before what it has sent.
    while matches!(received, Err(Errno::INTR | Errno::CONNRESET)) {
        received = look();
    }
    // It holds no files, and a process that has no number here, which it cannot be asked for.
    std::mem::forget(control);
    received.map(|message| message.flags.contains(ReturnFlags::CTRUNC))
}

/// A user, and the thread that closes a socket of his.
type Thread = (u32, JoinHandle<()>);

/// The threads that close sockets with files in their messages.
#[derive(Clone, Debug, Default)]
pub(crate) struct Closing(Arc<Mutex<Vec<Thread>>>);

impl Closing {
    /// Closes a connection. It never waits.
    pub(crate) fn close(&self, channel: Channel, user: u32) {
        let socket = OwnedFd::from(channel);
        // Nothing more is sent to it from here on.
        let _ = shutdown(&socket, Shutdown::Read);
        let mut next = peek(&socket);
        while let Next::Message = next {
            // What is longer than the room for it is discarded.
            next = match recv(&socket, &mut [0u8; 0], RecvFlags::DONTWAIT) {
                Ok(_) | Err(Errno::INTR) => peek(&socket),
                Err(_) => Next::Nothing,
            };
        }
        if next != Next::Files {
            return;
        }
        let closing = Builder::new().name("closing".into()).spawn(move || {
            // What the client has not received is lost to it when a socket with messages is closed.
            let mut fds = [PollFd::new(&socket, PollFlags::empty())];
            let _ = poll(&mut fds, Some(&PATIENCE));
        });
        let mut threads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        threads.retain(|(_, thread)| !thread.is_finished());
        // Without a thread the socket has been closed here.
        threads.extend(closing.ok().map(|thread| (user, thread)));
    }

    /// How many of a user's are not closed yet.
    pub(crate) fn of(&self, user: u32) -> usize {
        let threads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_open = |(whose, thread): &&Thread| *whose == user && !thread.is_finished();
        threads.iter().filter(is_open).count()
    }
}
