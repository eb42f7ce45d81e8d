//! From the command line to the end: the socket, the confinement, and the one loop.

use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bulkhead_process::confine::Confinement;
use bulkhead_process::signals::{self, SignalFd};
use rustix::fs::OFlags;
use vhost::vhost_user::{BackendReqHandler, Error as MessageError, VhostUserBackendReqHandlerMut};

use crate::args::DaemonArgs;
use crate::confine;
use crate::device::Device;
use crate::error::Error;
use crate::peer::{self, Header, Incoming};
use crate::poll::{Poll, Token};
use crate::session::Session;
use crate::socket::{Listener, Meeting};
use crate::warning::warn;

/// How many messages of the frontend are handled before the rings have their turn.
const MESSAGES_AT_ONCE: usize = 64;

/// Why a session ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum End {
    /// The program was told to end.
    Termination,
    /// The frontend is gone.
    Disconnected,
}

/// Serves `device` to the frontend that `args` name, until it disconnects (with `--persist`: until SIGTERM or SIGINT).
///
/// The socket is made first, then the service manager is told, then the process confines itself as `confinement` says plus what the
/// loop needs, and only then is the first byte of the frontend read. A socket that one frontend only may use is removed as soon as that
/// one is there, so that nothing in the confined process may remove files.
///
/// # Errors
/// See [`Error`]. What the device has acknowledged is put away in any case.
pub fn run<D: Device>(
    args: &DaemonArgs,
    device: &mut D,
    confinement: Confinement,
) -> Result<(), Error> {
    let termination = signals::block_termination()
        .map_err(|error| Error::System("cannot wait for signals", error))?;
    let meeting = Meeting::open(args)?;
    bulkhead_process::notify::ready()
        .map_err(|error| Error::System("cannot tell the service manager", error))?;
    let confinement = confine::allow(confinement);
    let mut server = Server {
        device,
        termination,
        poll: Arc::new(Poll::new().map_err(Error::system("epoll"))?),
    };
    server.watch()?;
    match meeting {
        Meeting::Connected(stream) => {
            confinement.enter()?;
            server.serve(stream).map(drop)
        }
        Meeting::Listener(listener) if args.persist => {
            let confinement = match listener.folder() {
                Some(folder) => confine::allow_removal(confinement, folder),
                None => confinement,
            };
            confinement.enter()?;
            server.serve_all(&listener)
        }
        Meeting::Listener(listener) => {
            let Some(stream) = server.accept(&listener)? else {
                return Ok(());
            };
            drop(listener);
            confinement.enter()?;
            server.serve(stream).map(drop)
        }
    }
}

struct Server<'d, D> {
    device: &'d mut D,
    termination: SignalFd,
    poll: Arc<Poll>,
}

impl<D: Device> Server<'_, D> {
    /// Watches what is there from the start.
    fn watch(&self) -> Result<(), Error> {
        self.poll
            .add(&self.termination, Token::Termination)
            .map_err(Error::system("epoll"))?;
        for (number, (fd, _)) in (0u32..).zip(self.device.events()) {
            self.poll
                .add(fd, Token::Device(number))
                .map_err(Error::system("cannot wait for the device"))?;
        }
        Ok(())
    }

    fn serve_all(&mut self, listener: &Listener) -> Result<(), Error> {
        while let Some(stream) = self.accept(listener)? {
            match self.serve(stream) {
                Ok(End::Termination) => break,
                Ok(End::Disconnected) => {}
                // The next one may know the protocol.
                Err(Error::Frontend(why)) => warn(&format!("the vhost-user frontend: {why}")),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Waits for a frontend. `None` if the program is told to end before.
    fn accept(&self, listener: &Listener) -> Result<Option<UnixStream>, Error> {
        let failed = |error| Error::System("cannot accept a frontend", error);
        // By fcntl(2): the standard library has an ioctl(2) for it, which confinement does not know.
        rustix::fs::fcntl_setfl(&listener.socket, OFlags::RDWR | OFlags::NONBLOCK)
            .map_err(Error::system("fcntl"))?;
        self.poll
            .add(&listener.socket, Token::Listener)
            .map_err(Error::system("epoll"))?;
        let accepted = loop {
            let tokens = self.poll.wait(true).map_err(Error::system("epoll"))?;
            if tokens.contains(&Token::Termination) && self.told_to_end()? {
                break None;
            }
            match listener.socket.accept() {
                Ok((stream, _)) => break Some(stream),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => {}
                Err(error) => return Err(failed(error)),
            }
        };
        self.poll.remove(&listener.socket);
        Ok(accepted)
    }

    fn told_to_end(&self) -> Result<bool, Error> {
        self.termination
            .take()
            .map(|signal| signal.is_some())
            .map_err(|error| Error::System("cannot read a signal", error))
    }

    fn serve(&mut self, stream: UnixStream) -> Result<End, Error> {
        let failed = |error| Error::System("cannot use the frontend's socket", error);
        let watched = stream.try_clone().map_err(failed)?;
        self.poll
            .add(&watched, Token::Frontend)
            .map_err(Error::system("epoll"))?;
        let events: Vec<D::Event> = self
            .device
            .events()
            .into_iter()
            .map(|(_, event)| event)
            .collect();
        let session = Arc::new(Mutex::new(Session::new(
            &mut *self.device,
            Arc::clone(&self.poll),
        )));
        let mut frontend = Frontend {
            messages: BackendReqHandler::from_stream(stream, Arc::clone(&session)),
            stream: watched,
            session,
            more: true,
        };
        let ended = frontend.run(&self.poll, &self.termination, &events);
        self.poll.remove(&frontend.stream);
        let closed = lock(&frontend.session).close().map_err(Error::Device);
        let end = ended?;
        closed.map(|()| end)
    }
}

/// A connected frontend.
struct Frontend<'d, D: Device> {
    messages: BackendReqHandler<Mutex<Session<'d, D>>>,
    /// The same socket, to look at.
    stream: UnixStream,
    session: Arc<Mutex<Session<'d, D>>>,
    /// There may be messages that nothing will tell of.
    more: bool,
}

impl<D: Device> Frontend<'_, D> {
    fn run(
        &mut self,
        poll: &Poll,
        termination: &SignalFd,
        events: &[D::Event],
    ) -> Result<End, Error> {
        loop {
            let idle = !self.more && !lock(&self.session).has_more();
            for token in poll.wait(idle).map_err(Error::system("epoll"))? {
                match token {
                    Token::Termination => {
                        let signal = termination
                            .take()
                            .map_err(|error| Error::System("cannot read a signal", error))?;
                        if signal.is_some() {
                            return Ok(End::Termination);
                        }
                    }
                    Token::Frontend => self.more = true,
                    Token::Kick(ring) => lock(&self.session).kicked(ring),
                    Token::Device(number) => {
                        if let Some(&event) = events.get(number as usize) {
                            lock(&self.session)
                                .device_event(event)
                                .map_err(Error::Device)?;
                        }
                    }
                    Token::Listener => {}
                }
            }
            if self.more && self.handle_messages()? == Some(End::Disconnected) {
                return Ok(End::Disconnected);
            }
            lock(&self.session).next_turns();
        }
    }

    /// Handles the messages that have arrived, up to a limit.
    fn handle_messages(&mut self) -> Result<Option<End>, Error> {
        for _ in 0..MESSAGES_AT_ONCE {
            let header = match peer::look(&self.stream) {
                Ok(Incoming::Message(header)) => header,
                Ok(Incoming::Nothing) => {
                    self.more = false;
                    return Ok(None);
                }
                Ok(Incoming::End) => return Ok(Some(End::Disconnected)),
                Err(error) => return Err(Error::Frontend(error.to_string())),
            };
            if header.is_ring_enable() && !lock(&self.session).has_negotiated() {
                self.enable_ring(header)?;
                continue;
            }
            let Err(error) = self.messages.handle_request() else {
                continue;
            };
            let mut session = lock(&self.session);
            match (session.take_refusal(), error) {
                (_, MessageError::Disconnected | MessageError::SocketBroken(_)) => {
                    return Ok(Some(End::Disconnected));
                }
                // It has been told, and may go on without.
                (Some(why), _) if session.replies_to_all() && header.is_acknowledged() => {
                    warn(&format!("the vhost-user frontend: {why}"));
                }
                (Some(why), _) => return Err(Error::Frontend(why)),
                (None, error) => return Err(Error::Frontend(error.to_string())),
            }
        }
        Ok(None)
    }

    /// QEMU enables a network device's rings before it sets features, which `vhost` refuses.
    fn enable_ring(&mut self, header: Header) -> Result<(), Error> {
        let failed = |error: std::io::Error| Error::Frontend(error.to_string());
        let mut session = lock(&self.session);
        let taken = peer::take_ring_enable(&self.stream).map_err(|error| failed(error.into()))?;
        let Some((index, enable)) = taken else {
            return Err(Error::Frontend("malformed SET_VRING_ENABLE".to_owned()));
        };
        if session.set_vring_enable(index, enable).is_err() {
            let why = session.take_refusal().unwrap_or_default();
            return Err(Error::Frontend(why));
        }
        if session.replies_to_all() && header.is_acknowledged() {
            peer::acknowledge_ring_enable(&self.stream).map_err(failed)?;
        }
        Ok(())
    }
}

/// One thread only ever takes the lock; `vhost` wants it.
fn lock<'a, 'd, D: Device>(session: &'a Mutex<Session<'d, D>>) -> MutexGuard<'a, Session<'d, D>> {
    session.lock().unwrap_or_else(PoisonError::into_inner)
}
