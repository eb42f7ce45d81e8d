//! From the command line to the end: the socket, the confinement, and one frontend after the other.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use bulkhead_process::confine::Confinement;
use bulkhead_process::signals::{self, SignalFd};
use rustix::fs::OFlags;

use crate::args::DaemonArgs;
use crate::confine;
use crate::crew::{self, Crew, Ending};
use crate::device::Device;
use crate::error::Error;
use crate::frontend::{End, Frontend};
use crate::poll::{Poll, Token};
use crate::sigbus;
use crate::socket::{Listener, Meeting};
use crate::warn;
use crate::watchdog;

/// Serves the device that `parts` make up to the frontend that `args` name, until it disconnects (with `--persist`: until SIGTERM or SIGINT).
///
/// The socket is made first, then the service manager is told, then the process confines itself as `confinement` says plus what the
/// loop needs, and only then is the first byte of the frontend read. A socket that one frontend only may use is removed as soon as that
/// one is there, so that nothing in the confined process may remove files. Several parts have a thread each while there is a frontend.
///
/// # Errors
/// See [`Error`]. What the device has acknowledged is put away in any case.
pub fn run<D: Device + Send>(
    args: &DaemonArgs,
    parts: &mut [D],
    confinement: Confinement,
) -> Result<(), Error> {
    let termination = signals::block_termination()
        .map_err(|error| Error::System("cannot wait for signals", error))?;
    watchdog::prepare().map_err(|error| Error::System("cannot handle a signal", error))?;
    sigbus::prepare().map_err(|error| Error::System("cannot handle a signal", error))?;
    let meeting = Meeting::open(args)?;
    bulkhead_process::notify::ready()
        .map_err(|error| Error::System("cannot tell the service manager", error))?;
    let confinement = confine::allow(confinement);
    let watched = termination
        .as_fd()
        .try_clone_to_owned()
        .map_err(|error| Error::System("cannot wait for signals", error))?;
    let mut server = Server {
        parts,
        termination,
        watched: Some(watched),
        poll: Arc::new(Poll::new().map_err(Error::system("epoll"))?),
    };
    server
        .poll
        .add(&server.termination, Token::Termination)
        .map_err(Error::system("epoll"))?;
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
    parts: &'d mut [D],
    termination: SignalFd,
    /// The same, for the watchdog, until that is started: after confinement, as all threads are.
    watched: Option<OwnedFd>,
    poll: Arc<Poll>,
}

impl<D: Device + Send> Server<'_, D> {
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
        watchdog::set_idle(true);
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
        if let Some(termination) = self.watched.take() {
            watchdog::start(termination)
                .map_err(|error| Error::System("cannot start a thread", error))?;
        }
        watchdog::set_idle(false);
        let rings = self.parts.first().map_or(0, Device::queues);
        let posts = crew::posts(self.parts, rings, &self.poll)?;
        let crew = Crew::new(&posts, &self.poll)?;
        std::thread::scope(|scope| {
            // However this ends, the threads do, too.
            let _ending = Ending(&posts);
            crew.start(scope)?;
            let mut frontend = Frontend::new(stream, &posts, rings)?;
            frontend.serve(&self.poll, &self.termination, &crew)
        })
    }
}
