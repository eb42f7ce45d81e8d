//! Holds a network helper while a guest runs: finds or starts one, and does so again when it ends.
//!
//! A helper runs in a session of its own and stays as long as any client has a hold or a lease, whoever started it. Its
//! standard input is its first hold, so that a helper whose starter is killed before it serves ends, too.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bulkhead_net_protocol::{Client, Error, ErrorKind, Hold, start_command};
use bulkhead_process::listen::Listen;
use crossbeam_channel::{Receiver, Sender, bounded};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::{PipeFlags, pipe_with};

use super::child::{detach, listen};
use super::event::{Ended, Event, Helper as News};
use super::messages::Messages;
use crate::guest::{Helper as Wanted, Process};

/// How long a helper may take to create its networks or to remove them, on a busy host.
const PATIENCE: Duration = Duration::from_secs(30);
/// The number of attempts to get a helper while other runs start and end theirs.
const TRIES: usize = 5;
/// The pause between attempts after all of them have failed.
const PAUSE: Duration = Duration::from_secs(1);

/// What is reported of a helper that this run starts.
#[derive(Clone)]
struct Report {
    /// Whether its end is.
    verbose: bool,
    messages: Messages,
}

/// The thread that holds a helper, until it is released.
pub(crate) struct Helper {
    /// Closing it ends the hold.
    needed: OwnedFd,
    thread: JoinHandle<anyhow::Result<()>>,
}

impl Helper {
    /// Begins to find or start a helper. Changes of its state are sent to `events`.
    pub(crate) fn need(
        wanted: Wanted,
        verbose: bool,
        messages: Messages,
        events: Sender<Event>,
    ) -> io::Result<Self> {
        let report = Report { verbose, messages };
        let (over, needed) = pipe_with(PipeFlags::CLOEXEC)?;
        let thread = std::thread::Builder::new()
            .name("net-helper".into())
            .spawn(move || keep(&wanted, &report, &over, &events))?;
        Ok(Self { needed, thread })
    }

    /// Ends the hold. If it is the last, this waits for the helper's end.
    pub(crate) fn release(self) -> anyhow::Result<()> {
        drop(self.needed);
        match self.thread.join() {
            Ok(released) => released,
            Err(_) => bail!("lost track of net-helper"),
        }
    }
}

/// Whether a helper serves.
pub(crate) fn runs(wanted: &Wanted) -> bool {
    match UnixStream::connect(&wanted.socket) {
        Ok(_) => true,
        // The helper's socket is one of packets, not a stream.
        Err(error) => error.raw_os_error() == Some(libc::EPROTOTYPE),
    }
}

/// The error that no helper runs and this user may not start one.
pub(crate) fn missing(wanted: &Wanted) -> anyhow::Error {
    let shown = wanted.socket.display();
    let (as_root, or) = match rustix::process::geteuid().is_root() {
        true => ("", ""),
        false => (" as root", ", or run without --net"),
    };
    let command = start_command(&wanted.socket, wanted.networks.iter().map(String::as_str));
    anyhow::anyhow!(
        "bulkhead-net-helper is not running: nothing listens on {shown}; start it{as_root} ({command}), \
         or name the socket of another with --helper-socket{or}"
    )
}

/// A helper that we hold.
struct Held {
    hold: Hold,
    /// `Some` if this run has started it.
    started: Option<Started>,
}

/// A helper that this run has started.
struct Started {
    /// Receives its end.
    end: Receiver<io::Result<Ended>>,
    ready: Arc<AtomicBool>,
}

/// The thread's work: holds one helper after the other, until the other end of `over` is closed.
fn keep(
    wanted: &Wanted,
    report: &Report,
    over: &OwnedFd,
    events: &Sender<Event>,
) -> anyhow::Result<()> {
    loop {
        let news = match acquire(wanted, report, over) {
            Ok(None) => return Ok(()),
            Ok(Some(held)) => {
                // It fails when the run is over.
                let _ = events.send(Event::Helper(News::Held));
                if closes_first(over, &held.hold, None)? {
                    return release(held, &wanted.socket, report);
                }
                News::Gone(held.started.and_then(|started| started.ended()))
            }
            Err(error) => News::Failed(error),
        };
        let pause = matches!(news, News::Failed(_));
        let _ = events.send(Event::Helper(news));
        if pause && closes_within(over, PAUSE)? {
            return Ok(());
        }
    }
}

/// Holds the helper that runs, or one that it starts. Returns `None` if `over` closes meanwhile.
fn acquire(wanted: &Wanted, report: &Report, over: &OwnedFd) -> anyhow::Result<Option<Held>> {
    let mut last = None;
    for _ in 0..TRIES {
        match hold(Client::connect(&wanted.socket), over) {
            Err(error) if error.kind() == ErrorKind::NotRunning => {
                // The helper that this run has started has failed, and not because another one runs.
                if let Some(why) = last.take() {
                    return Err(why);
                }
            }
            // The helper has just ended, or has failed to start.
            Err(error) if error.kind() == ErrorKind::Closed => {}
            Err(error) => return Err(error.into()),
            Ok(hold) => {
                return Ok(hold.map(|hold| Held {
                    hold,
                    started: None,
                }));
            }
        }
        let Some(process) = &wanted.start else {
            return Err(missing(wanted));
        };
        let (client, started) = start(process, report)
            .with_context(|| format!("cannot start {}", process.program.path.display()))?;
        match hold(Ok(client), over) {
            Ok(Some(hold)) => {
                started.ready.store(true, Ordering::Relaxed);
                let started = Some(started);
                return Ok(Some(Held { hold, started }));
            }
            // The connection is closed now, so the helper ends.
            Ok(None) => {
                started.ended();
                return Ok(None);
            }
            // Another run may have started one first.
            Err(error) => {
                last = Some(match started.ended() {
                    Some(ended) => ended.never_began("net-helper"),
                    None => anyhow::Error::from(error).context("net-helper"),
                });
            }
        }
    }
    Err(last.unwrap_or_else(|| missing(wanted)))
}

/// Requests a hold and waits for it. Returns `None` if `over` closes before.
fn hold(client: Result<Client, Error>, over: &OwnedFd) -> Result<Option<Hold>, Error> {
    let pending = client?.request_hold()?;
    match closes_first(over, &pending, Some(PATIENCE)) {
        Ok(true) => return Ok(None),
        Ok(false) => {}
        // If it does not come in time, receiving it fails.
        Err(_) => {
            let _ = set_socket_timeout(&pending, Timeout::Recv, Some(Duration::from_millis(1)));
        }
    }
    pending.finish().map(Some)
}

/// Starts a helper, and returns the other end of its standard input, which is its first hold.
fn start(process: &Process, report: &Report) -> anyhow::Result<(Client, Started)> {
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    let mut command = Command::new(&process.program.path);
    command
        .args(&process.args)
        .arg("--client-on-stdin")
        .env_remove("NOTIFY_SOCKET")
        .current_dir("/")
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    detach(&mut command);
    let mut child = command.spawn()?;
    // The command still has this process's end of the standard input.
    drop(command);
    let (sender, end) = bounded(1);
    let ready = Arc::new(AtomicBool::new(false));
    let (is_ready, report) = (ready.clone(), report.clone());
    std::thread::Builder::new()
        .name("watch-net-helper".into())
        .spawn(move || {
            let stderr = child.stderr.take().map(OwnedFd::from).map(File::from);
            let last_line =
                stderr.and_then(|it| listen(it, "net-helper", &is_ready, &report.messages));
            let status = child.wait();
            if let (true, Ok(status)) = (report.verbose, &status) {
                let how = format!("(process {}) ended by itself, {status}", child.id());
                report.messages.say("net-helper", &how);
            }
            let ended = status.map(|status| Ended {
                status: Some(status),
                last_line,
            });
            let _ = sender.send(ended);
        })?;
    Ok((Client::from_socket(ours), Started { end, ready }))
}

impl Started {
    /// Waits for the helper's end.
    fn ended(self) -> Option<Ended> {
        self.end.recv_timeout(PATIENCE).ok()?.ok()
    }
}

/// Releases the hold, and waits for the helper's end if that was the last.
fn release(held: Held, socket: &Path, report: &Report) -> anyhow::Result<()> {
    let ends = match held.hold.release(PATIENCE) {
        // The helper has ended meanwhile.
        Err(error) if error.kind() == ErrorKind::Closed => true,
        other => other.context("net-helper")?,
    };
    let Some(started) = held.started.filter(|_| ends) else {
        // Another run has started it, and is gone, so nobody reads what the helper says.
        if ends && Listen::default().seqpacket().is_stale(socket) {
            let shown = socket.display();
            let why =
                format!("net-helper has ended and could not remove {shown}: the next one will");
            report.messages.warn(&why);
        }
        return Ok(());
    };
    match started.ended() {
        Some(ended) if ended.is_success() => Ok(()),
        Some(ended) => bail!("net-helper: {}", ended.why()),
        None => bail!("net-helper did not end"),
    }
}

/// Whether `over` closes before anything comes from `other`; an error if neither happens in time.
fn closes_first(over: &OwnedFd, other: impl AsFd, patience: Option<Duration>) -> io::Result<bool> {
    let until = patience.map(|patience| Instant::now() + patience);
    loop {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        let mut fds = [
            PollFd::new(over, PollFlags::IN),
            PollFd::new(&other, PollFlags::IN),
        ];
        match poll(&mut fds, timeout.as_ref()) {
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => {
                let [over, _] = fds;
                return Ok(!over.revents().is_empty());
            }
        }
    }
}

fn closes_within(over: &OwnedFd, time: Duration) -> io::Result<bool> {
    match closes_first(over, over, Some(time)) {
        Err(error) if error.kind() == io::ErrorKind::TimedOut => Ok(false),
        other => other,
    }
}
