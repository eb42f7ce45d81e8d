//! A connected frontend, and the loop that hears it.

use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bulkhead_process::signals::SignalFd;
use vhost::vhost_user::{BackendReqHandler, Error as MessageError, VhostUserBackendReqHandlerMut};

use crate::crew::Crew;
use crate::device::Device;
use crate::error::Error;
use crate::peer::{self, Header, Incoming};
use crate::poll::{Poll, Token};
use crate::post::Post;
use crate::session::Session;
use crate::warn;

/// How many messages of the frontend are handled before the rings have their turn.
const MESSAGES_AT_ONCE: usize = 64;

/// Why a session ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum End {
    /// The program was told to end.
    Termination,
    /// The frontend is gone.
    Disconnected,
}

/// A connected frontend.
pub(crate) struct Frontend<'s, 'd, D: Device> {
    messages: BackendReqHandler<Mutex<Session<'s, 'd, D>>>,
    /// The same socket, to look at.
    stream: UnixStream,
    session: Arc<Mutex<Session<'s, 'd, D>>>,
    /// The part that this thread serves, too.
    here: Option<&'s Post<'d, D>>,
    /// There may be messages that nothing will tell of.
    more: bool,
}

impl<'s, 'd, D: Device + Send> Frontend<'s, 'd, D> {
    pub(crate) fn new(
        stream: UnixStream,
        posts: &'s [Post<'d, D>],
        rings: u16,
    ) -> Result<Self, Error> {
        let failed = |error| Error::System("cannot use the frontend's socket", error);
        let Some(first) = posts.first() else {
            let nothing = std::io::Error::other("it has no parts");
            return Err(Error::System("cannot serve the device", nothing));
        };
        let watched = stream.try_clone().map_err(failed)?;
        let session = Arc::new(Mutex::new(Session::new(first, posts, rings)));
        Ok(Self {
            messages: BackendReqHandler::from_stream(stream, Arc::clone(&session)),
            stream: watched,
            session,
            here: Some(first).filter(|post| !post.is_apart()),
            more: true,
        })
    }

    /// Hears the frontend until it is gone or the program is told to end, and has the device put everything away.
    pub(crate) fn serve(
        &mut self,
        poll: &Poll,
        termination: &SignalFd,
        crew: &Crew<'_, '_, D>,
    ) -> Result<End, Error> {
        poll.add(&self.stream, Token::Frontend)
            .map_err(Error::system("epoll"))?;
        let ended = self.run(poll, termination, crew);
        poll.remove(&self.stream);
        let closed = lock(&self.session).close().map_err(Error::Device);
        let end = ended?;
        closed.map(|()| end)
    }

    fn run(
        &mut self,
        poll: &Poll,
        termination: &SignalFd,
        crew: &Crew<'_, '_, D>,
    ) -> Result<End, Error> {
        loop {
            let idle = !self.more && !self.here.is_some_and(|post| post.take().has_more());
            for token in poll.wait(idle).map_err(Error::system("epoll"))? {
                match (token, self.here) {
                    (Token::Termination, _) => {
                        let signal = termination
                            .take()
                            .map_err(|error| Error::System("cannot read a signal", error))?;
                        if signal.is_some() {
                            return Ok(End::Termination);
                        }
                    }
                    (Token::Frontend, _) => self.more = true,
                    (Token::Alarm, _) => return Err(crew.failure()),
                    (token, Some(post)) => post.take().happened(token).map_err(Error::Device)?,
                    (_, None) => {}
                }
            }
            if self.more && self.handle_messages()? == Some(End::Disconnected) {
                return Ok(End::Disconnected);
            }
            if let Some(post) = self.here {
                post.take().next_turns();
            }
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
fn lock<'a, 's, 'd, D: Device>(
    session: &'a Mutex<Session<'s, 'd, D>>,
) -> MutexGuard<'a, Session<'s, 'd, D>> {
    session.lock().unwrap_or_else(PoisonError::into_inner)
}
