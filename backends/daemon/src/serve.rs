//! The life of a backend: its socket, its confinement, and one frontend after the other.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use bulkhead_process::broker::Broker;
use bulkhead_process::confine::{Confinement, First};
use bulkhead_process::listen::AcceptPause;
use bulkhead_process::signals::{self, SignalFd};
use rustix::fs::OFlags;

use crate::args::DaemonArgs;
use crate::confine;
use crate::device::Device;
use crate::endpoint::{Endpoint, Listener};
use crate::error::Error;
use crate::frontend::{End, Frontend};
use crate::poll::{Poll, Token};
use crate::sigbus;
use crate::warn;
use crate::watchdog;
use crate::workers::{EndOnDrop, Workers, workers_of};

/// Serves the device that `parts` make up until the frontend disconnects, or with `--persist` until SIGTERM or SIGINT.
/// This is for a device that parses nothing hostile before it serves; for others there is [`Daemon`].
///
/// # Errors
/// See [`Error`]. What the device has acknowledged is made durable in any case.
pub fn run<D: Device + Send>(
    args: &DaemonArgs,
    parts: &mut [D],
    confinement: Confinement,
) -> Result<(), Error> {
    let mut daemon = Daemon::new(args)?;
    daemon.confine(confinement)?;
    daemon.run(parts)
}

/// A backend from its start to its end: it makes its socket, confines itself, notifies the service manager, and only
/// then reads the first byte of a frontend.
///
/// ```no_run
/// # use bulkhead_daemon::{Confinement, Daemon, DaemonArgs, Device, Error};
/// # fn serve<D: Device + Send>(args: &DaemonArgs, open: fn() -> D) -> Result<(), Error> {
/// let mut daemon = Daemon::new(args)?;
/// // From here on only the image can be opened; it is parsed by a process that can do little else.
/// let opening = Confinement::new().allow(&[libc::SYS_openat]).write_path("disk.qcow2");
/// daemon.begin(Confinement::new().allow(&[libc::SYS_pread64]), opening)?;
/// let mut device = open();
/// daemon.run(&mut [device]) // opens nothing any more
/// # }
/// ```
#[derive(Debug)]
pub struct Daemon {
    persist: bool,
    termination: SignalFd,
    endpoint: Endpoint,
    broker: Orderly,
    first: Option<First>,
}

/// A broker that removes the socket's file however the program ends, unless it is killed.
#[derive(Debug, Default)]
struct Orderly(Option<Broker>);

impl Drop for Orderly {
    fn drop(&mut self) {
        if let Some(broker) = self.0.take() {
            broker.end();
        }
    }
}

impl Orderly {
    /// Returns the broker, which is started when it is first needed.
    fn broker(&mut self) -> io::Result<&mut Broker> {
        match &mut self.0 {
            Some(broker) => Ok(broker),
            none => Ok(none.insert(Broker::start()?)),
        }
    }
}

impl Daemon {
    /// Blocks SIGTERM, SIGINT and SIGHUP, to end in order when one comes, and makes the socket that `args` name.
    ///
    /// # Errors
    /// When the socket cannot be made, or a system call fails.
    pub fn new(args: &DaemonArgs) -> Result<Self, Error> {
        let termination = signals::block_termination()
            .map_err(|error| Error::System("cannot wait for signals", error))?;
        watchdog::prepare().map_err(|error| Error::System("cannot handle a signal", error))?;
        sigbus::prepare().map_err(|error| Error::System("cannot handle a signal", error))?;
        let mut broker = Orderly::default();
        let mut endpoint = Endpoint::open(args)?;
        if let Endpoint::Listener(listener) = &mut endpoint
            && listener.file.is_some()
        {
            let started = broker.broker().map_err(no_broker)?;
            if let Some(file) = listener.file.take() {
                started.remove_at_end(file).map_err(no_broker)?;
            }
        }
        Ok(Self {
            persist: args.persist,
            termination,
            endpoint,
            broker,
            first: None,
        })
    }

    /// Keeps a descriptor open until the process has ended, such as a lease. The broker has it, so an intruder in this
    /// process cannot use it.
    ///
    /// # Errors
    /// When the broker cannot be started, or the process is confined already.
    pub fn keep(&mut self, fd: OwnedFd) -> Result<(), Error> {
        let kept = self.broker.broker().and_then(|broker| broker.keep(fd));
        kept.map_err(no_broker)
    }

    /// Confines the process to what `confinement` allows and what the serve loop needs.
    ///
    /// # Errors
    /// When the host refuses that. End the process then.
    pub fn confine(&mut self, confinement: Confinement) -> Result<(), Error> {
        self.seal()?;
        Ok(confine::allow(confinement).enter()?)
    }

    /// The same in two stages: what `opening` allows is allowed, too, until [`Self::run`].
    ///
    /// # Errors
    /// When the host refuses that. End the process then.
    pub fn begin(&mut self, confinement: Confinement, opening: Confinement) -> Result<(), Error> {
        self.seal()?;
        self.first = Some(confine::allow(confinement).begin(opening)?);
        Ok(())
    }

    fn seal(&mut self) -> Result<(), Error> {
        match &mut self.broker.0 {
            Some(broker) => broker.seal().map_err(no_broker),
            None => Ok(()),
        }
    }

    /// Serves the device that `parts` make up until the frontend disconnects, or with `--persist` until a termination
    /// signal comes. While there is a frontend, several parts have a thread each.
    ///
    /// # Errors
    /// See [`Error`]. What the device has acknowledged is made durable in any case.
    pub fn run<D: Device + Send>(mut self, parts: &mut [D]) -> Result<(), Error> {
        if let Some(first) = self.first.take() {
            first.finish()?;
        }
        let watched = self
            .termination
            .as_fd()
            .try_clone_to_owned()
            .map_err(|error| Error::System("cannot wait for signals", error))?;
        let mut server = Server {
            parts,
            termination: self.termination,
            watched: Some(watched),
            poll: Arc::new(Poll::new().map_err(Error::system("epoll"))?),
        };
        server
            .poll
            .add(&server.termination, Token::Termination)
            .map_err(Error::system("epoll"))?;
        // All descriptors that the loop needs are open. If the process has none left later, it waits for some instead
        // of failing.
        bulkhead_process::notify::ready(&server.termination)
            .map_err(|error| Error::System("cannot notify the service manager", error))?;
        match self.endpoint {
            Endpoint::Connected(stream) => server.serve(stream).map(drop),
            Endpoint::Listener(listener) if self.persist => server.serve_all(&listener),
            Endpoint::Listener(listener) => {
                let Some(stream) = server.accept(&listener)? else {
                    return Ok(());
                };
                // No other frontend is served.
                drop(listener);
                if let Some(broker) = &self.broker.0 {
                    broker.remove_now().map_err(no_broker)?;
                }
                server.serve(stream).map(drop)
            }
        }
    }
}

fn no_broker(error: io::Error) -> Error {
    Error::System("cannot have a process that removes the socket", error)
}

struct Server<'d, D> {
    parts: &'d mut [D],
    termination: SignalFd,
    /// A duplicate for the watchdog, until it is started, which is after confinement like all threads.
    watched: Option<OwnedFd>,
    poll: Arc<Poll>,
}

impl<D: Device + Send> Server<'_, D> {
    fn serve_all(&mut self, listener: &Listener) -> Result<(), Error> {
        while let Some(stream) = self.accept(listener)? {
            match self.serve(stream) {
                Ok(End::Termination) => break,
                Ok(End::Disconnected) => {}
                // The next frontend may follow the protocol.
                Err(Error::Frontend(why)) => warn(&format!("the vhost-user frontend: {why}")),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Waits for a frontend. Returns `None` if a termination signal comes first.
    fn accept(&self, listener: &Listener) -> Result<Option<UnixStream>, Error> {
        // By fcntl(2), since the standard library uses an ioctl(2), which the confinement does not allow.
        rustix::fs::fcntl_setfl(&listener.socket, OFlags::RDWR | OFlags::NONBLOCK)
            .map_err(Error::system("fcntl"))?;
        watchdog::set_idle(true);
        self.poll
            .add(&listener.socket, Token::Listener)
            .map_err(Error::system("epoll"))?;
        let device = self.parts.first();
        let watched = device.and_then(Device::watched_without_frontend);
        if let Some(watched) = watched {
            let added = self.poll.add(watched, Token::Device(0));
            added.map_err(Error::system("epoll"))?;
        }
        let mut pause = AcceptPause::default();
        let accepted = loop {
            let left = pause.until();
            let left = left.map(|until| until.saturating_duration_since(Instant::now()));
            let tokens = self.poll.wait_for(left).map_err(Error::system("epoll"))?;
            if tokens.contains(&Token::Termination) && self.termination_came()? {
                break None;
            }
            if tokens.contains(&Token::Device(0)) {
                device.map_or(Ok(()), Device::look).map_err(Error::Device)?;
            }
            match listener.socket.accept() {
                Ok((stream, _)) => break Some(stream),
                // A frontend that waits is not reported again, so accept it again after the pause.
                Err(error) => drop(pause.note("a frontend", &error)),
            }
        };
        self.poll.remove(&listener.socket);
        if let Some(watched) = watched {
            self.poll.remove(watched);
        }
        Ok(accepted)
    }

    fn termination_came(&self) -> Result<bool, Error> {
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
        let list = workers_of(self.parts, rings, &self.poll)?;
        let workers = Workers::new(&list, &self.poll)?;
        std::thread::scope(|scope| {
            // A guard, so that the threads end however this function does.
            let _end = EndOnDrop(&list);
            workers.start(scope)?;
            let mut frontend = Frontend::new(stream, &list, rings)?;
            frontend.serve(&self.poll, &self.termination, &workers)
        })
    }
}
