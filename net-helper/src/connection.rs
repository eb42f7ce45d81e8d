//! Messages and the end of connections, where clients send open files that the protocol does not have.
//!
//! A client can send open files, and closing the last copy of a file can take as long as the client likes (a TCP socket
//! that lingers). The process that receives the message, or closes the socket that the message is queued on, waits for
//! that. Since Linux 6.16 the kernel refuses such messages when they are sent. On earlier kernels, and on a connection
//! made before the option was set, a message with files is never received. A socket with such messages, or with many
//! messages, is closed by a thread, one for each user, and counts as a connection of that user until then.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;
use std::time::{Duration, Instant};

use bulkhead_net_protocol::Channel;
use bulkhead_process::listen::refuse_files;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::set_socket_passcred;
use rustix::net::{RecvAncillaryBuffer, RecvFlags, ReturnFlags, Shutdown, recv, recvmsg, shutdown};

/// The next message of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// None has arrived yet.
    Empty,
    /// A message without files.
    Message,
    /// A message with files.
    Files,
    /// The client has closed the connection.
    End,
}

/// How many messages that a client has sent and nobody will read are discarded before its connection is closed. A
/// client can send hundreds, which takes milliseconds.
const MAX_DISCARDED: usize = 4;

/// How long a client has to receive its last reply before its connection is closed.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Sets the options of a connection, or of the socket that it is accepted from: the kernel refuses files, if it can,
/// and adds the sender's credentials to messages.
pub(crate) fn set_options(socket: &impl AsFd) -> io::Result<()> {
    refuse_files(socket)?;
    Ok(mark_messages(socket)?)
}

/// Has the kernel add the sender's credentials to each message, also to an empty one, so that [`peek`] can distinguish
/// an empty message from the end of the connection.
fn mark_messages(socket: &impl AsFd) -> rustix::io::Result<()> {
    set_socket_passcred(socket, true)
}

/// Looks at the next message, without receiving it.
pub(crate) fn peek(connection: &impl AsFd) -> Next {
    // Each message has its sender's credentials as control data. With no buffer for control data, the kernel sets
    // MSG_CTRUNC for every message, and not at the end of the connection; with a buffer for the credentials alone, only
    // for a message with files.
    let mut credentials = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
    match is_truncated(connection, &mut []) {
        Err(Errno::AGAIN) => Next::Empty,
        Ok(true) => match is_truncated(connection, &mut credentials) {
            Ok(true) => Next::Files,
            _ => Next::Message,
        },
        Ok(false) | Err(_) => Next::End,
    }
}

/// Whether the control data of the next message does not fit in a buffer.
fn is_truncated(connection: &impl AsFd, buffer: &mut [MaybeUninit<u8>]) -> Result<bool, Errno> {
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    let mut control = RecvAncillaryBuffer::new(buffer);
    let mut peek = || recvmsg(connection, &mut [], &mut control, flags);
    let mut received = peek();
    // ECONNRESET is returned once, before the client's messages, if the client has closed without receiving all
    // replies.
    while matches!(received, Err(Errno::INTR | Errno::CONNRESET)) {
        received = peek();
    }
    // The buffer contains no files that must be closed. Dropping it would parse the credentials, and fail for a process
    // of another PID namespace.
    std::mem::forget(control);
    received.map(|message| message.flags.contains(ReturnFlags::CTRUNC))
}

/// The sockets with files in their messages or with many messages, by user: one thread for each user closes them one
/// after the other.
#[derive(Clone, Debug, Default)]
pub(crate) struct Closing(Arc<Mutex<BTreeMap<u32, Queue>>>);

/// The sockets of a user that are not closed yet.
#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    has_thread: bool,
    /// Whether the thread is closing a socket, which is not in `waiting` any more.
    is_closing: bool,
}

#[derive(Debug)]
struct Waiting {
    socket: OwnedFd,
    /// When the socket is closed, unless its client closes it before.
    deadline: Instant,
}

impl Closing {
    /// Closes a connection, without blocking. Of its messages only the first few are looked at: with more of them, or
    /// with a file in them, the user's thread closes it.
    pub(crate) fn close(&self, channel: Channel, user: u32) {
        let socket = OwnedFd::from(channel);
        // From here on the client can send nothing more.
        let _ = shutdown(&socket, Shutdown::Read);
        let mut next = peek(&socket);
        for _ in 0..MAX_DISCARDED {
            if next != Next::Message {
                break;
            }
            // A message that is longer than the buffer is discarded.
            next = match recv(&socket, &mut [0u8; 0], RecvFlags::DONTWAIT) {
                Ok(_) | Err(Errno::INTR) => peek(&socket),
                Err(_) => Next::Empty,
            };
        }
        let mut queues = self.queues();
        if matches!(next, Next::Files | Next::Message) {
            let deadline = Instant::now() + CLOSE_TIMEOUT;
            let waiting = &mut queues.entry(user).or_default().waiting;
            waiting.push_back(Waiting { socket, deadline });
        }
        for (&user, queue) in queues.iter_mut().filter(|(_, queue)| !queue.has_thread) {
            let closing = self.clone();
            let thread = Builder::new().name("closing".into());
            // If the thread cannot be started, the sockets stay open until the next call.
            queue.has_thread = thread.spawn(move || closing.close_all_of(user)).is_ok();
        }
    }

    fn close_all_of(&self, user: u32) {
        while let Some(Waiting { socket, deadline }) = self.next_of(user) {
            let left = deadline.saturating_duration_since(Instant::now());
            // Closing a socket with unread messages discards the replies that the client has not received, so give it
            // time.
            let mut fds = [PollFd::new(&socket, PollFlags::empty())];
            let _ = poll(&mut fds, Timespec::try_from(left).ok().as_ref());
        }
    }

    /// The next socket to be closed. When there is none, the user's queue is removed and its thread ends.
    fn next_of(&self, user: u32) -> Option<Waiting> {
        let mut queues = self.queues();
        let queue = queues.get_mut(&user)?;
        let next = queue.waiting.pop_front();
        queue.is_closing = next.is_some();
        if next.is_none() {
            queues.remove(&user);
        }
        next
    }

    /// How many sockets of a user are not closed yet.
    pub(crate) fn of_user(&self, user: u32) -> usize {
        let of = |queue: &Queue| queue.waiting.len() + usize::from(queue.is_closing);
        self.queues().get(&user).map_or(0, of)
    }

    /// Has the end of the process close the remaining sockets, which does not block.
    pub(crate) fn leave_to_exit(self) {
        std::mem::forget(self);
    }

    fn queues(&self) -> MutexGuard<'_, BTreeMap<u32, Queue>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use bulkhead_test_frontend::descriptors::lingering;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    /// The number of this process's threads that close sockets.
    fn threads() -> usize {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        let name = |task: std::io::Result<std::fs::DirEntry>| {
            std::fs::read_to_string(task.unwrap().path().join("comm")).unwrap_or_default()
        };
        tasks.map(name).filter(|name| name == "closing\n").count()
    }

    fn eventually(condition: impl Fn() -> bool) {
        let start = Instant::now();
        while !condition() {
            assert!(start.elapsed() < Duration::from_secs(20));
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn one_thread_closes_the_files_of_a_user_and_all_that_wait_count() {
        const OF_EACH: usize = 15;
        let closing = Closing::default();
        let mut readers = Vec::new();
        for user in [0, 1].repeat(OF_EACH) {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
            let (helper, client) = pair.unwrap();
            mark_messages(&helper).unwrap();
            let (file, reader) = lingering(Duration::from_secs(60));
            let client = Channel::new(client);
            client.send(&"a file", &[file.as_fd()]).unwrap();
            closing.close(Channel::new(helper), user);
            readers.push(reader);
        }
        assert_eq!(
            [0, 1, 2].map(|user| closing.of_user(user)),
            [OF_EACH, OF_EACH, 0]
        );
        eventually(|| threads() == 2);

        drop(readers);

        eventually(|| closing.of_user(0) + closing.of_user(1) == 0);
        eventually(|| threads() == 0);
    }
}
