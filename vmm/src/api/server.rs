//! The API's socket and its clients. The server waits for no client: each has a time limit, and the one idle for
//! longest makes room for a new one.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use bulkhead_process::listen::{self, AcceptPause};
use rustix::event::PollFlags;

use super::http::{MAX_REQUEST, Parsed, Request, Response, Status, parse};
use crate::broker::Broker;

/// With more clients, the one idle for longest is disconnected.
const MAX_CLIENTS: usize = 16;
/// When the process has no descriptor for a new client, one that has been idle for so long is disconnected.
const IDLE: Duration = Duration::from_secs(1);
/// How long a client may take for a request and for reading its answer.
const PATIENCE: Duration = Duration::from_secs(30);

const CONTINUE: &[u8] = b"HTTP/1.1 100 \r\n\r\n";

/// The answer to a request.
#[derive(Debug, PartialEq)]
pub(crate) enum Reply {
    /// The request is done, or refused.
    Now(Response),
    /// [`Server::resolve`] gets the response later. Until then the client's next requests wait.
    Later,
}

/// An event of the API's sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ApiEvent {
    /// A client connects.
    Connection,
    /// This client has sent data, or can receive more.
    Client(usize),
}

/// The API's socket and its clients.
pub(crate) struct Server {
    listener: UnixListener,
    folder: PathBuf,
    clients: Vec<Client>,
    pause: AcceptPause,
}

struct Client {
    stream: UnixStream,
    /// The beginning of the next request, as far as it was received.
    partial: Vec<u8>,
    /// The rest of a response. Nothing is read until it is sent.
    unsent: Vec<u8>,
    /// When it connected or got its last response.
    since: Instant,
    /// Its request is not answered yet.
    waits: bool,
    /// It got the status 100 for the request's body.
    continued: bool,
    /// The response just made is the last. Once it is sent, all that the client sends is discarded until it closes:
    /// closing a socket with unread bytes would reset the connection.
    last: bool,
    gone: bool,
}

impl Server {
    /// Listens at `path`, in place of a monitor that was killed.
    pub(crate) fn new(path: &Path, broker: &Broker) -> anyhow::Result<Self> {
        let (listener, file) = listen::listen(path)?.into_parts();
        broker.remove_at_end(file)?;
        Ok(Self {
            listener: listener.into(),
            folder: folder_of(path),
            clients: Vec::new(),
            pause: AcceptPause::default(),
        })
    }

    /// The absolute path of the folder that the socket is in.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Calls `add` for each event source.
    pub(crate) fn sources<'a>(&'a self, mut add: impl FnMut(ApiEvent, BorrowedFd<'a>, PollFlags)) {
        if self.pause.until().is_none() {
            add(ApiEvent::Connection, self.listener.as_fd(), PollFlags::IN);
        }
        for (number, client) in self.clients.iter().enumerate() {
            let flags = match client.unsent.is_empty() {
                true => PollFlags::IN,
                false => PollFlags::OUT,
            };
            if !client.waits {
                add(ApiEvent::Client(number), client.stream.as_fd(), flags);
            }
        }
    }

    /// When [`Self::tidy`] has to be called even without an event.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let clients = self.clients.iter().filter(|client| !client.waits);
        let ends = clients.map(|client| client.since + PATIENCE);
        ends.chain(self.pause.until()).min()
    }

    /// Handles an event. `answer` answers requests. After the last event of a round, [`Self::tidy`] is called, which
    /// changes the clients' numbers.
    pub(crate) fn handle(&mut self, event: ApiEvent, answer: impl FnMut(&Request) -> Reply) {
        match event {
            ApiEvent::Connection => self.accept(),
            ApiEvent::Client(number) => {
                if let Some(client) = self.clients.get_mut(number) {
                    client.gone |= client.serve(answer).is_none();
                }
            }
        }
    }

    /// Sends a response that was [`Reply::Later`], and answers the client's next requests.
    pub(crate) fn resolve(
        &mut self,
        response: &Response,
        mut answer: impl FnMut(&Request) -> Reply,
    ) {
        for client in self.clients.iter_mut().filter(|client| client.waits) {
            client.waits = false;
            let done = match client.respond(response, !client.last) {
                Some(()) => client.answer_all(&mut answer),
                None => None,
            };
            client.gone |= done.is_none();
        }
    }

    /// Removes the clients that have disconnected or exceeded their time.
    pub(crate) fn tidy(&mut self) {
        let now = Instant::now();
        let late = |client: &Client| !client.waits && client.since + PATIENCE <= now;
        self.clients.retain(|client| !client.gone && !late(client));
        // The last in the list have just connected.
        while self.clients.len() > MAX_CLIENTS {
            match self.longest_idle() {
                Some(number) => drop(self.clients.remove(number)),
                None => return,
            }
        }
    }

    fn longest_idle(&self) -> Option<usize> {
        let waiting = self.clients.iter().enumerate().filter(|(_, c)| !c.waits);
        let longest = waiting.min_by_key(|(_, client)| client.since);
        longest.map(|(number, _)| number)
    }

    fn accept(&mut self) {
        let accepted = self.listener.accept().and_then(|(stream, _)| {
            stream.set_nonblocking(true)?;
            Ok(stream)
        });
        match accepted {
            Ok(stream) => self.clients.push(Client {
                stream,
                partial: Vec::new(),
                unsent: Vec::new(),
                since: Instant::now(),
                waits: false,
                continued: false,
                last: false,
                gone: false,
            }),
            Err(error) => {
                self.pause.note("a client of the API", &error);
                let longest = self.longest_idle();
                if let (Some(_), Some(number)) = (self.pause.until(), longest)
                    && let Some(client) = self.clients.get_mut(number)
                {
                    client.gone |= client.since.elapsed() >= IDLE;
                }
            }
        }
    }
}

fn folder_of(path: &Path) -> PathBuf {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let absolute = match folder.components().any(|part| part == Component::ParentDir) {
        true => folder.canonicalize(),
        false => std::path::absolute(folder),
    };
    absolute.unwrap_or_else(|_| folder.to_owned())
}

impl Client {
    /// Sends the rest of a response, or else reads and answers requests. Returns `None` when the client is to be
    /// removed.
    fn serve(&mut self, mut answer: impl FnMut(&Request) -> Reply) -> Option<()> {
        if !self.unsent.is_empty() {
            self.flush()?;
            return self.answer_all(&mut answer);
        }
        let mut bytes = [0; 4096];
        match self.stream.read(&mut bytes) {
            Ok(0) => return None,
            Ok(_) if self.last => return Some(()),
            Ok(len) => self.partial.extend(bytes.iter().take(len)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Some(()),
            Err(error) if error.kind() == ErrorKind::Interrupted => return Some(()),
            Err(_) => return None,
        }
        self.answer_all(&mut answer)
    }

    /// Answers the requests received, as long as the client receives the responses.
    fn answer_all(&mut self, answer: &mut impl FnMut(&Request) -> Reply) -> Option<()> {
        while self.unsent.is_empty() && !self.last {
            match parse(&self.partial) {
                Ok(Parsed::Complete(request, len)) => {
                    self.partial.drain(..len);
                    self.continued = false;
                    match answer(&request) {
                        Reply::Now(response) => self.respond(&response, request.keep_alive)?,
                        Reply::Later => {
                            self.waits = true;
                            self.last = !request.keep_alive;
                            return Some(());
                        }
                    }
                }
                Ok(Parsed::Partial { .. }) if self.partial.len() > MAX_REQUEST => {
                    let error = "the request is too long".to_owned();
                    self.respond(&Response::Error(Status::BadRequest, error), false)?;
                }
                Ok(Parsed::Partial { expects }) => {
                    if expects && !std::mem::replace(&mut self.continued, true) {
                        self.unsent.extend(CONTINUE);
                        self.flush()?;
                    }
                    return Some(());
                }
                Err(error) => self.respond(&Response::Error(Status::BadRequest, error), false)?,
            }
        }
        if self.unsent.is_empty() && self.last {
            self.partial.clear();
            self.stream.shutdown(Shutdown::Write).ok()?;
        }
        Some(())
    }

    fn respond(&mut self, response: &Response, keep_alive: bool) -> Option<()> {
        self.since = Instant::now();
        self.last = !keep_alive;
        self.unsent.extend(response.to_bytes(keep_alive));
        self.flush()
    }

    /// Sends as much as the socket accepts now.
    fn flush(&mut self) -> Option<()> {
        while !self.unsent.is_empty() {
            match self.stream.write(&self.unsent) {
                Ok(len) => drop(self.unsent.drain(..len)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Some(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        }
        Some(())
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
