//! A backend that a test controls: it answers correctly, except to requests for which the test's rule says otherwise.

use std::collections::BTreeMap;
use std::io::{ErrorKind, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

pub(crate) const GET_FEATURES: u32 = 1;
pub(crate) const SET_FEATURES: u32 = 2;
pub(crate) const SET_VRING_NUM: u32 = 8;
#[allow(dead_code)] // not all tests that have this module use it
pub(crate) const SET_VRING_BASE: u32 = 10;
pub(crate) const GET_VRING_BASE: u32 = 11;
pub(crate) const SET_VRING_ENABLE: u32 = 18;
pub(crate) const SET_CONFIG: u32 = 25;
const SET_VRING_KICK: u32 = 12;
const SET_VRING_CALL: u32 = 13;
const GET_PROTOCOL_FEATURES: u32 = 15;
const GET_QUEUE_NUM: u32 = 17;
const GET_CONFIG: u32 = 24;

const VERSION_1: u64 = 1 << 32;
const PROTOCOL_FEATURES: u64 = 1 << 30;
/// MQ, REPLY_ACK and CONFIG.
const PROTOCOL: u64 = 1 << 0 | REPLY_ACK | 1 << 9;
const REPLY_ACK: u64 = 1 << 3;

/// How the backend answers a request.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    Answer,
    /// It answers that it failed.
    Refuse,
    /// It never answers again.
    Hang,
    /// It ends the connection.
    Die,
}

/// The number and body of each request.
type Seen = Arc<Mutex<Vec<(u32, Vec<u8>)>>>;

/// The kicks of each queue that is enabled.
type Kicks = Arc<Mutex<BTreeMap<u8, OwnedFd>>>;

/// What each queue's interrupt is.
type Calls = Arc<Mutex<BTreeMap<u8, OwnedFd>>>;

type Rule = Box<dyn Fn(u32, &[u8]) -> Then + Send>;

/// The backend, and what it was asked.
pub(crate) struct Fake {
    pub(crate) socket: PathBuf,
    seen: Seen,
    kicks: Kicks,
    calls: Calls,
    connections: Arc<Mutex<u32>>,
    current: Arc<Mutex<Option<UnixStream>>>,
}

impl Fake {
    /// Listens in `folder`. `features` are offered beside those of vhost-user.
    pub(crate) fn start(folder: &Path, features: u64, rule: Rule) -> Self {
        Self::offering(folder, (features, PROTOCOL), rule)
    }

    /// The same without REPLY_ACK: the backend does not report whether a request succeeded.
    #[allow(dead_code)] // not all tests that have this module use it
    pub(crate) fn without_acknowledgements(folder: &Path, rule: Rule) -> Self {
        Self::offering(folder, (0, PROTOCOL & !REPLY_ACK), rule)
    }

    fn offering(folder: &Path, features: (u64, u64), rule: Rule) -> Self {
        let fake = Self {
            socket: folder.join("socket"),
            seen: Arc::default(),
            kicks: Arc::default(),
            calls: Arc::default(),
            connections: Arc::default(),
            current: Arc::default(),
        };
        let listener = UnixListener::bind(&fake.socket).unwrap();
        let (seen, connections) = (fake.seen.clone(), fake.connections.clone());
        let (current, kicks, calls) =
            (fake.current.clone(), fake.kicks.clone(), fake.calls.clone());
        // It ends with the test.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                *current.lock().unwrap() = Some(stream.try_clone().unwrap());
                *connections.lock().unwrap() += 1;
                // An error is the frontend's end.
                let _ = serve(&mut stream, features, &rule, (&seen, &kicks, &calls));
                current.lock().unwrap().take();
            }
        });
        fake
    }

    #[allow(dead_code)] // as above
    pub(crate) fn saw(&self, request: u32) -> bool {
        self.count(request) > 0
    }

    #[allow(dead_code)] // as above
    pub(crate) fn count(&self, request: u32) -> usize {
        let seen = self.seen.lock().unwrap();
        seen.iter().filter(|(seen, _)| *seen == request).count()
    }

    /// Whether a kick of this queue waits to be served. Those before the queue was enabled are thrown away, as
    /// `vhost-user-backend` does.
    #[allow(dead_code)] // as above
    pub(crate) fn is_kicked(&self, queue: u8) -> bool {
        let kicks = self.kicks.lock().unwrap();
        kicks.get(&queue).is_some_and(is_readable)
    }

    /// Interrupts for this queue.
    #[allow(dead_code)] // as above
    pub(crate) fn call(&self, queue: u8) {
        let calls = self.calls.lock().unwrap();
        rustix::io::write(&calls[&queue], &1_u64.to_ne_bytes()).unwrap();
    }

    /// The last body of such a request.
    #[allow(dead_code)] // as above
    pub(crate) fn last(&self, request: u32) -> Option<Vec<u8>> {
        let seen = self.seen.lock().unwrap();
        let mut seen = seen.iter().rev();
        seen.find(|(seen, _)| *seen == request)
            .map(|(_, body)| body.clone())
    }

    /// Ends the connection there is.
    #[allow(dead_code)] // not all tests that have this module use it
    pub(crate) fn cut(&self) {
        if let Some(stream) = &*self.current.lock().unwrap() {
            stream.shutdown(std::net::Shutdown::Both).unwrap();
        }
    }

    #[allow(dead_code)] // as above
    pub(crate) fn connections(&self) -> u32 {
        *self.connections.lock().unwrap()
    }
}

/// Keeps the interrupt of a queue that a request brings.
fn note_call(
    request: u32,
    body: &[u8],
    descriptor: Option<OwnedFd>,
    calls: &Calls,
) -> Option<OwnedFd> {
    match (request, descriptor, body.first()) {
        (SET_VRING_CALL, Some(call), Some(&queue)) => {
            calls.lock().unwrap().insert(queue, call);
            None
        }
        (_, descriptor, _) => descriptor,
    }
}

/// What a request does to the kicks of an enabled queue; `given` are those of queues that may not be.
fn note_kick(
    request: u32,
    body: &[u8],
    descriptor: Option<OwnedFd>,
    (given, enabled): (&mut BTreeMap<u8, OwnedFd>, &Kicks),
) {
    let queue = body.first().copied().unwrap_or_default();
    let mut enabled = enabled.lock().unwrap();
    match (request, descriptor) {
        (SET_VRING_KICK, Some(kick)) => drop(given.insert(queue, kick)),
        (SET_VRING_ENABLE, _) if body.get(4) == Some(&1) => {
            if let Some(kick) = given.remove(&queue) {
                if is_readable(&kick) {
                    let _ = rustix::io::read(&kick, &mut [0; 8]);
                }
                enabled.insert(queue, kick);
            }
        }
        (SET_VRING_ENABLE, _) => drop(enabled.remove(&queue)),
        _ => {}
    }
}

fn is_readable(fd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::default())).unwrap() > 0
}

/// Fills `bytes`; returns the descriptor that came along.
fn receive(stream: &UnixStream, bytes: &mut [u8]) -> std::io::Result<Option<OwnedFd>> {
    let (mut got, mut came) = (0, None);
    while got < bytes.len() {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut bytes[got..])];
        let received = recvmsg(stream, &mut parts, &mut control, RecvFlags::empty())?;
        if received.bytes == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        got += received.bytes;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                came = fds.last().or(came);
            }
        }
    }
    Ok(came)
}

fn serve(
    stream: &mut UnixStream,
    (features, protocol): (u64, u64),
    rule: &Rule,
    (seen, kicks, calls): (&Seen, &Kicks, &Calls),
) -> std::io::Result<()> {
    let mut given = BTreeMap::new();
    loop {
        let mut header = [0; 12];
        let descriptor = receive(stream, &mut header)?;
        let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
        let (request, flags) = (word(0), word(4));
        let mut body = vec![0; word(8) as usize];
        stream.read_exact(&mut body)?;
        seen.lock().unwrap().push((request, body.clone()));
        let descriptor = note_call(request, &body, descriptor, calls);
        let then = rule(request, &body);
        note_kick(request, &body, descriptor, (&mut given, kicks));
        let number = |number: u64| Some(number.to_ne_bytes().to_vec());
        let reply = match (then, request) {
            (Then::Hang, _) => {
                let _ = stream.read_to_end(&mut Vec::new());
                return Ok(());
            }
            (Then::Die, _) => return Ok(()),
            (_, GET_FEATURES) => number(features | VERSION_1 | PROTOCOL_FEATURES),
            (_, GET_PROTOCOL_FEATURES) => number(protocol),
            (_, GET_QUEUE_NUM) => number(8),
            (_, GET_VRING_BASE) => Some(body),
            (_, GET_CONFIG) => Some(body),
            (then, _) if flags & 8 != 0 => number(u64::from(then == Then::Refuse)),
            _ => None,
        };
        if let Some(reply) = reply {
            let mut message = Vec::new();
            for word in [request, 5, reply.len() as u32] {
                message.extend(word.to_ne_bytes());
            }
            message.extend(reply);
            stream.write_all(&message)?;
        }
    }
}
