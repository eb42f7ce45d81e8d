//! A connected frontend, and the loop that hears it.

use std::os::unix::net::UnixStream;

use bulkhead_process::signals::SignalFd;

use crate::connection::{Connection, Incoming, Message};
use crate::crew::Crew;
use crate::device::Device;
use crate::error::Error;
use crate::messages::Refusal;
use crate::poll::{Poll, Token};
use crate::post::Post;
use crate::session::Session;
use crate::sigbus;
use crate::warn;
use crate::watchdog;

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
    connection: Connection,
    session: Session<'s, 'd, D>,
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
        let Some(first) = posts.first() else {
            let nothing = std::io::Error::other("it has no parts");
            return Err(Error::System("cannot serve the device", nothing));
        };
        Ok(Self {
            connection: Connection::new(stream),
            session: Session::new(first, posts, rings),
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
        poll.add(&self.connection, Token::Frontend)
            .map_err(Error::system("epoll"))?;
        let ended = self.run(poll, termination, crew);
        poll.remove(&self.connection);
        let closed = self.session.close().map_err(Error::Device);
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
                            watchdog::ending();
                            return Ok(End::Termination);
                        }
                    }
                    (Token::Frontend, _) => self.more = true,
                    (Token::Alarm, _) if !sigbus::is_lost() => return Err(crew.failure()),
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
            if sigbus::is_lost() {
                return Err(Error::Frontend(
                    "it has truncated memory that it shares".to_owned(),
                ));
            }
        }
    }

    /// Handles the messages that have arrived, up to a limit.
    fn handle_messages(&mut self) -> Result<Option<End>, Error> {
        for _ in 0..MESSAGES_AT_ONCE {
            match self.connection.receive().map_err(Error::Frontend)? {
                Incoming::Message(message) => self.handle(message).map_err(Error::Frontend)?,
                Incoming::Nothing => {
                    self.more = false;
                    return Ok(None);
                }
                Incoming::End => return Ok(Some(End::Disconnected)),
            }
        }
        Ok(None)
    }

    fn handle(&mut self, message: Message) -> Result<(), String> {
        let (request, acknowledged) = (message.request, message.is_acknowledged());
        let done = self.session.handle(message);
        // Also after the message that asked for it.
        let acknowledged = acknowledged && self.session.replies_to_all();
        match done {
            Ok(Some(reply)) => self.connection.reply(request, reply),
            Ok(None) if acknowledged => self.connection.acknowledge(request, true),
            Ok(None) => Ok(()),
            // It learns of that, and may go on without.
            Err(Refusal::Request(why)) if acknowledged => {
                warn(&format!("the vhost-user frontend: {why}"));
                self.connection.acknowledge(request, false)
            }
            Err(Refusal::Request(why)) => Err(why),
            Err(Refusal::Malformed(request)) => Err(format!("malformed message {request:?}")),
        }
    }
}
