//! A connected frontend, and the main thread's loop while there is one.

use std::os::unix::net::UnixStream;

use bulkhead_process::signals::SignalFd;

use crate::connection::{Connection, Incoming, Message};
use crate::device::Device;
use crate::error::Error;
use crate::messages::Refusal;
use crate::poll::{Poll, Token};
use crate::session::Session;
use crate::sigbus;
use crate::warn;
use crate::watchdog;
use crate::worker::Worker;
use crate::workers::Workers;

/// How many messages of the frontend are handled before the rings are served again.
const MESSAGES_AT_ONCE: usize = 64;

/// Why a session ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum End {
    /// SIGTERM, SIGINT or SIGHUP has come.
    Termination,
    /// The frontend is gone.
    Disconnected,
}

/// A connected frontend.
pub(crate) struct Frontend<'s, 'd, D: Device> {
    connection: Connection,
    session: Session<'s, 'd, D>,
    /// The worker that has no thread of its own, if there is one: this thread serves it.
    own: Option<&'s Worker<'d, D>>,
    /// There may be messages for which no event will come.
    more: bool,
}

impl<'s, 'd, D: Device + Send> Frontend<'s, 'd, D> {
    pub(crate) fn new(
        stream: UnixStream,
        workers: &'s [Worker<'d, D>],
        rings: u16,
    ) -> Result<Self, Error> {
        let Some(first) = workers.first() else {
            let nothing = std::io::Error::other("it has no parts");
            return Err(Error::System("cannot serve the device", nothing));
        };
        Ok(Self {
            connection: Connection::new(stream),
            session: Session::new(first, workers, rings),
            own: Some(first).filter(|worker| !worker.has_thread()),
            more: true,
        })
    }

    /// Serves the frontend until it disconnects or a termination signal comes, then has the device write back what it
    /// holds.
    pub(crate) fn serve(
        &mut self,
        poll: &Poll,
        termination: &SignalFd,
        workers: &Workers<'_, '_, D>,
    ) -> Result<End, Error> {
        poll.add(&self.connection, Token::Frontend)
            .map_err(Error::system("epoll"))?;
        let ended = self.run(poll, termination, workers);
        poll.remove(&self.connection);
        let closed = self.session.close().map_err(Error::Device);
        let end = ended?;
        closed.map(|()| end)
    }

    fn run(
        &mut self,
        poll: &Poll,
        termination: &SignalFd,
        workers: &Workers<'_, '_, D>,
    ) -> Result<End, Error> {
        loop {
            let idle = !self.more && !self.own.is_some_and(|worker| worker.lock().has_more());
            for token in poll.wait(idle).map_err(Error::system("epoll"))? {
                match (token, self.own) {
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
                    (Token::WorkerEnded, _) if !sigbus::is_lost() => return Err(workers.failure()),
                    (token, Some(worker)) => worker.lock().handle(token).map_err(Error::Device)?,
                    (_, None) => {}
                }
            }
            if self.more && self.handle_messages()? == Some(End::Disconnected) {
                return Ok(End::Disconnected);
            }
            if let Some(worker) = self.own {
                worker.lock().next_turns();
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
        // Read after the message was handled: the message that turns acknowledgements on is acknowledged itself.
        let acknowledged = acknowledged && self.session.replies_to_all();
        match done {
            Ok(Some(reply)) => self.connection.reply(request, reply),
            Ok(None) if acknowledged => self.connection.acknowledge(request, true),
            Ok(None) => Ok(()),
            // The frontend learns that the request failed, and may go on without it.
            Err(Refusal::Request(why)) if acknowledged => {
                warn(&format!("the vhost-user frontend: {why}"));
                self.connection.acknowledge(request, false)
            }
            Err(Refusal::Request(why)) => Err(why),
            Err(Refusal::Malformed(request)) => Err(format!("malformed message {request:?}")),
        }
    }
}
