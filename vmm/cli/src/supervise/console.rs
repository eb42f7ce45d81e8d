//! The guest's console in the background: one thread takes what the guest writes from the monitor's socket, keeps the
//! newest of it, writes it to a log, and passes it on to a client, one at a time.
//!
//! The thread waits in poll alone. A client that does not read loses the oldest output, and nobody waits for it.

use std::collections::VecDeque;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::messages::Log;

/// How much output is kept for clients that come later.
const KEPT: usize = 128 << 10;
/// How much input may wait for the guest.
const INPUT: usize = 4096;
/// How long the last output may take to reach the client.
const LAST: Duration = Duration::from_secs(1);

/// The console's thread, as others see it.
#[derive(Clone)]
pub(super) struct Hub {
    inbox: Arc<Mutex<Inbox>>,
    wake: Arc<OwnedFd>,
    ended: Receiver<()>,
}

/// What the thread is to do next.
#[derive(Default)]
struct Inbox {
    /// Who has the console.
    holder: Option<(Seat, String)>,
    seats: u64,
    client: Option<(Seat, OwnedFd)>,
    /// The monitor's socket, to which the thread is to connect.
    monitor: Option<PathBuf>,
    ends: bool,
}

/// The right to be the console's client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seat(u64);

impl Hub {
    /// Starts the thread. Without a `log`, output is kept in memory alone. `goes_on`: the guest runs already, and what it
    /// has written is in the log.
    pub(super) fn start(log: Option<&Path>, goes_on: bool) -> io::Result<Self> {
        let (sender, ended) = bounded(0);
        let hub = Self {
            inbox: Arc::default(),
            wake: Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?),
            ended,
        };
        let mut output = Output::default();
        if let (true, Some(log)) = (goes_on, log) {
            output.push(&last_of(log).unwrap_or_default());
        }
        let thread = Thread {
            hub: hub.clone(),
            log: log.and_then(|path| Log::open(path).ok()),
            output,
            monitor: None,
            client: None,
            input: VecDeque::new(),
        };
        std::thread::Builder::new()
            .name("console".into())
            .spawn(move || thread.run(&sender))?;
        Ok(hub)
    }

    /// Has the thread connect to the socket of a monitor that is ready.
    pub(super) fn connect(&self, monitor: &Path) {
        self.inbox().monitor = Some(monitor.to_owned());
        self.wake();
    }

    /// Reserves the console for a client, which is described by `who`. `Err` is who has it.
    pub(super) fn reserve(&self, force: bool, who: &str) -> Result<Seat, String> {
        let mut inbox = self.inbox();
        if let (false, Some((_, holder))) = (force, &inbox.holder) {
            return Err(holder.clone());
        }
        inbox.seats += 1;
        let seat = Seat(inbox.seats);
        inbox.holder = Some((seat, who.to_owned()));
        Ok(seat)
    }

    /// Connects the client, unless another one has taken its place.
    pub(super) fn attach(&self, seat: Seat, client: OwnedFd) {
        let mut inbox = self.inbox();
        if inbox.holder.as_ref().is_some_and(|(now, _)| *now == seat) {
            inbox.client = Some((seat, client));
        }
        drop(inbox);
        self.wake();
    }

    /// Passes on the last output, and ends the thread.
    pub(super) fn finish(&self) {
        self.inbox().ends = true;
        self.wake();
        let _ = self.ended.recv_timeout(2 * LAST);
    }

    fn leave(&self, seat: Seat) {
        let mut inbox = self.inbox();
        inbox.holder.take_if(|(now, _)| *now == seat);
    }

    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // It fails only when the counter is full, and then the thread wakes, too.
        let _ = rustix::io::write(&*self.wake, &1_u64.to_ne_bytes());
    }
}

/// The newest output, by its offset in all of it.
#[derive(Default)]
struct Output {
    kept: VecDeque<u8>,
    end: u64,
}

impl Output {
    fn start(&self) -> u64 {
        self.end - self.kept.len() as u64
    }

    fn push(&mut self, bytes: &[u8]) {
        self.kept.extend(bytes);
        self.end += bytes.len() as u64;
        let excess = self.kept.len().saturating_sub(KEPT);
        self.kept.drain(..excess);
    }

    /// What is kept from `offset` on, or from the oldest on if that is lost, as far as it lies in one piece.
    fn from(&self, offset: u64) -> (u64, &[u8]) {
        let offset = offset.max(self.start());
        let skip = usize::try_from(offset - self.start()).unwrap_or(0);
        let (first, second) = self.kept.as_slices();
        let piece = match skip.checked_sub(first.len()) {
            Some(skip) => second.get(skip..),
            None => first.get(skip..),
        };
        (offset, piece.unwrap_or_default())
    }
}

struct Client {
    seat: Seat,
    stream: UnixStream,
    /// The offset of the output that it gets next.
    at: u64,
}

struct Thread {
    hub: Hub,
    log: Option<Log>,
    output: Output,
    monitor: Option<UnixStream>,
    client: Option<Client>,
    /// Input that the monitor has not taken yet.
    input: VecDeque<u8>,
}

impl Thread {
    fn run(mut self, _ended: &Sender<()>) {
        let mut deadline = None;
        loop {
            if self.take_inbox() && deadline.is_none() {
                deadline = Some(Instant::now() + LAST);
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let idle = self.monitor.is_none() && !self.client_lags();
            if left.is_some_and(|left| left.is_zero() || idle) {
                return;
            }
            if self.wait(left).is_err() {
                return;
            }
            self.read_monitor();
            self.read_client();
            self.write_monitor();
            self.write_client();
        }
    }

    fn client_lags(&self) -> bool {
        let client = self.client.as_ref();
        client.is_some_and(|client| client.at < self.output.end)
    }

    /// Takes what others have ordered. Returns whether the thread is to end.
    fn take_inbox(&mut self) -> bool {
        let mut inbox = self.hub.inbox();
        let (client, monitor, ends) = (inbox.client.take(), inbox.monitor.take(), inbox.ends);
        drop(inbox);
        if let Some((seat, client)) = client {
            let stream = UnixStream::from(client);
            let at = self.output.start();
            self.client = Some(Client { seat, stream, at });
        }
        if let Some(path) = monitor {
            let connected = UnixStream::connect(path);
            let nonblocking = connected.and_then(|it| it.set_nonblocking(true).map(|()| it));
            self.monitor = nonblocking.ok();
        }
        ends
    }

    fn wait(&self, left: Option<Duration>) -> io::Result<()> {
        let mut fds = vec![PollFd::new(&*self.hub.wake, PollFlags::IN)];
        if let Some(monitor) = &self.monitor {
            let mut flags = PollFlags::IN;
            flags.set(PollFlags::OUT, !self.input.is_empty());
            fds.push(PollFd::from_borrowed_fd(monitor.as_fd(), flags));
        }
        if let Some(client) = &self.client {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, self.input.len() < INPUT);
            flags.set(PollFlags::OUT, client.at < self.output.end);
            fds.push(PollFd::from_borrowed_fd(client.stream.as_fd(), flags));
        }
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut count = [0; 8];
        let _ = rustix::io::read(&*self.hub.wake, &mut count);
        Ok(())
    }

    fn read_monitor(&mut self) {
        let Some(monitor) = &mut self.monitor else {
            return;
        };
        let mut bytes = [0; 4096];
        match read(monitor, &mut bytes) {
            Some([]) => {
                self.monitor = None;
                // What this guest has not read is not for the next one.
                self.input.clear();
            }
            Some(bytes) => {
                self.output.push(bytes);
                if let Some(log) = &mut self.log {
                    // A full disk must not keep the console from anybody.
                    let _ = log.append(bytes);
                }
            }
            None => {}
        }
    }

    fn read_client(&mut self) {
        let Some(client) = &mut self.client else {
            return;
        };
        if self.input.len() >= INPUT {
            return;
        }
        let mut bytes = [0; INPUT];
        match read(&mut client.stream, &mut bytes) {
            Some([]) => self.drop_client(),
            Some(bytes) => self.input.extend(bytes),
            None => {}
        }
    }

    fn write_monitor(&mut self) {
        let Some(monitor) = &mut self.monitor else {
            return;
        };
        let (piece, _) = self.input.as_slices();
        if let Ok(written @ 1..) = monitor.write(piece) {
            self.input.drain(..written);
        }
    }

    fn write_client(&mut self) {
        let Some(client) = &mut self.client else {
            return;
        };
        let (at, piece) = self.output.from(client.at);
        if piece.is_empty() {
            return;
        }
        match client.stream.write(piece) {
            Ok(written) => client.at = at + written as u64,
            Err(error) if is_pause(&error) => {}
            Err(_) => self.drop_client(),
        }
    }

    fn drop_client(&mut self) {
        if let Some(client) = self.client.take() {
            self.hub.leave(client.seat);
        }
    }
}

/// The last output in a log.
fn last_of(log: &Path) -> io::Result<Vec<u8>> {
    let mut file = std::fs::File::open(log)?;
    let start = file.metadata()?.len().saturating_sub(KEPT as u64);
    file.seek(SeekFrom::Start(start))?;
    let mut last = Vec::new();
    file.take(KEPT as u64).read_to_end(&mut last)?;
    Ok(last)
}

/// What can be read now: `None` if that is nothing, empty at the end.
fn read<'a>(from: &mut UnixStream, into: &'a mut [u8]) -> Option<&'a [u8]> {
    match from.read(into) {
        Ok(length) => into.get(..length),
        Err(error) if is_pause(&error) => None,
        Err(_) => Some(&[]),
    }
}

fn is_pause(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    struct Bench {
        hub: Hub,
        guest: UnixStream,
        _folder: tempfile::TempDir,
    }

    fn bench() -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let hub = Hub::start(Some(&folder.path().join("log")), false).unwrap();
        hub.connect(&path);
        let guest = listener.accept().unwrap().0;
        Bench {
            hub,
            guest,
            _folder: folder,
        }
    }

    fn attach(hub: &Hub, force: bool, who: &str) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        hub.attach(hub.reserve(force, who).unwrap(), theirs.into());
        ours
    }

    fn read_exact(stream: &mut UnixStream, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_client_gets_what_was_written_before_and_keys_reach_the_guest() {
        let mut bench = bench();
        bench.guest.write_all(b"boot\r\n").unwrap();
        let mut client = attach(&bench.hub, false, "one");
        assert_eq!(read_exact(&mut client, 6), b"boot\r\n");
        client.write_all(b"root\n").unwrap();
        assert_eq!(read_exact(&mut bench.guest, 5), b"root\n");
    }

    #[test]
    fn one_client_has_the_console_until_it_leaves_or_another_takes_it() {
        let bench = bench();
        let mut first = attach(&bench.hub, false, "one");
        assert_eq!(bench.hub.reserve(false, "two"), Err("one".to_owned()));
        let second = attach(&bench.hub, true, "three");
        assert_eq!(first.read(&mut [0; 1]).unwrap(), 0);
        assert_eq!(bench.hub.reserve(false, "two"), Err("three".to_owned()));
        drop(second);
        while bench.hub.reserve(false, "four").is_err() {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_client_that_does_not_read_loses_the_oldest_and_holds_up_nobody() {
        let mut bench = bench();
        let mut client = attach(&bench.hub, false, "one");
        for number in 0..20_000_u32 {
            writeln!(bench.guest, "{number:099}").unwrap();
        }
        bench.guest.write_all(b"end").unwrap();
        drop(bench.guest);
        // All of it has been taken from the guest when the thread has seen the end of the stream.
        let mut all = Vec::new();
        let hub = bench.hub.clone();
        let ends = std::thread::spawn(move || hub.finish());
        client.read_to_end(&mut all).unwrap();
        ends.join().unwrap();
        assert!(all.ends_with(b"end"));
        assert!(all.len() < 2_000_000);
    }
}
