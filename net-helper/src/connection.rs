//! The end of connections, and what comes over them that nobody asked for.
//!
//! A client can send open files, and closing the last copy of a file can take as long as the client likes (a TCP socket
//! that lingers). The kernel does that on behalf of whoever receives the message or closes the socket that it waits at.
//! Since Linux 6.16 it refuses the files when they are sent. Before that, and on a connection that was there before we
//! could ask for it, a message with files is never received, and a socket with such messages is closed by a thread of
//! its user's, and counts as a connection of that user until then.

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
const PATIENCE: Duration = Duration::from_secs(1);

/// Has the kernel refuse a client's files, if it can, and mark its messages; for a connection, or for the socket that
/// it is accepted from.
pub(crate) fn guard(socket: &impl AsFd) -> io::Result<()> {
    refuse_files(socket)?;
    Ok(mark_messages(socket)?)
}

/// Has the kernel say with each message whose it is, also if there is nothing in it; the end is nobody's. For [`peek`].
fn mark_messages(socket: &impl AsFd) -> rustix::io::Result<()> {
    set_socket_passcred(socket, true)
}

/// Looks at the next message, without receiving it.
pub(crate) fn peek(connection: &impl AsFd) -> Next {
    // Where there is no room for whose it is, the kernel says so; and where there is just room for that, that there are
    // files.
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

/// The sockets with files in their messages, by user: one thread for each user closes them one after the other.
#[derive(Clone, Debug, Default)]
pub(crate) struct Closing(Arc<Mutex<BTreeMap<u32, Queue>>>);

/// The sockets of a user that are not closed yet.
#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    has_thread: bool,
    /// Whether the thread has one that waits no more.
    closes: bool,
}

#[derive(Debug)]
struct Waiting {
    socket: OwnedFd,
    /// When it is closed, if its client has not closed it before.
    until: Instant,
}

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
        let mut queues = self.queues();
        if next == Next::Files {
            let until = Instant::now() + PATIENCE;
            let waiting = &mut queues.entry(user).or_default().waiting;
            waiting.push_back(Waiting { socket, until });
        }
        for (&user, queue) in queues.iter_mut().filter(|(_, queue)| !queue.has_thread) {
            let closing = self.clone();
            let thread = Builder::new().name("closing".into());
            // Without a thread the sockets stay open until the next try.
            queue.has_thread = thread.spawn(move || closing.close_all_of(user)).is_ok();
        }
    }

    fn close_all_of(&self, user: u32) {
        while let Some(Waiting { socket, until }) = self.next_of(user) {
            let left = until.saturating_duration_since(Instant::now());
            // What the client has not received is lost to it when a socket with messages is closed.
            let mut fds = [PollFd::new(&socket, PollFlags::empty())];
            let _ = poll(&mut fds, Timespec::try_from(left).ok().as_ref());
        }
    }

    /// The next socket to be closed; after the last, the user's thread is none any more.
    fn next_of(&self, user: u32) -> Option<Waiting> {
        let mut queues = self.queues();
        let queue = queues.get_mut(&user)?;
        let next = queue.waiting.pop_front();
        queue.closes = next.is_some();
        if next.is_none() {
            queues.remove(&user);
        }
        next
    }

    /// How many of a user's are not closed yet.
    pub(crate) fn of(&self, user: u32) -> usize {
        let of = |queue: &Queue| queue.waiting.len() + usize::from(queue.closes);
        self.queues().get(&user).map_or(0, of)
    }

    /// Leaves what is not closed to the end of the process, which waits for no file.
    pub(crate) fn leave(self) {
        std::mem::forget(self);
    }

    fn queues(&self) -> MutexGuard<'_, BTreeMap<u32, Queue>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};

    use rustix::net::sockopt::set_socket_linger;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    /// A file whose last copy takes a minute to close, or as long as the other value lives.
    fn lingering() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let reader = listener.accept().unwrap().0;
        stream.set_nonblocking(true).unwrap();
        while stream.write(&[0; 65536]).is_ok() {}
        stream.set_nonblocking(false).unwrap();
        set_socket_linger(&stream, Some(Duration::from_secs(60))).unwrap();
        (stream, reader)
    }

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
            let (file, reader) = lingering();
            let client = Channel::new(client);
            client.send(&"a file", &[file.as_fd()]).unwrap();
            closing.close(Channel::new(helper), user);
            readers.push(reader);
        }
        assert_eq!(
            [0, 1, 2].map(|user| closing.of(user)),
            [OF_EACH, OF_EACH, 0]
        );
        eventually(|| threads() == 2);

        drop(readers);

        eventually(|| closing.of(0) + closing.of(1) == 0);
        eventually(|| threads() == 0);
    }
}
