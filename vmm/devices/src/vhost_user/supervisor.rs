//! The thread that looks after a device's connection: it sleeps while the backend lives, and looks for another when it died.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::BackendEvent;
use super::backend_channel::BackendChannel;
use super::error::Fault;
use super::session::Session;

/// How long to wait between attempts: at first, and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

pub(super) fn start(session: &Arc<Session>) -> io::Result<()> {
    let session = session.clone();
    thread::Builder::new()
        .name("vhost-user".into())
        .spawn(move || run(&session))?;
    Ok(())
}

fn run(session: &Session) {
    while !session.is_closed() {
        watch(session);
        if session.is_closed() {
            return;
        }
        session.report(BackendEvent::Lost);
        if !reconnect(session) {
            return;
        }
        session.report(BackendEvent::Back);
    }
}

/// Returns when the connection is no more.
fn watch(session: &Session) {
    let Some((socket, mut channel)) = watched(session) else {
        return;
    };
    loop {
        let mut fds = Vec::with_capacity(2);
        // Replies are read by whoever asked; this thread wants to know of the end only.
        fds.push(PollFd::new(&socket, PollFlags::RDHUP));
        fds.extend(
            channel
                .iter()
                .map(|channel| PollFd::new(channel, PollFlags::IN)),
        );
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            // Without poll there is no way to go on watching.
            Err(_) => return session.unlink(),
        }
        let mut happened = fds.iter().map(|fd| !fd.revents().is_empty());
        if happened.next() == Some(true) {
            return session.unlink();
        }
        if happened.next() == Some(true) {
            drop(happened);
            listen(session, &mut channel);
        }
    }
}

/// What to watch: the connection's socket, and the backend's channel if it has one.
fn watched(session: &Session) -> Option<(UnixStream, Option<BackendChannel>)> {
    let mut state = session.state();
    let link = state.link.as_mut()?;
    match link.connection.try_clone_socket() {
        Ok(socket) => Some((socket, link.channel.take())),
        Err(fault) => {
            state.link = None;
            drop(state);
            session.report_fault(fault);
            None
        }
    }
}

fn listen(session: &Session, channel: &mut Option<BackendChannel>) {
    let heard = channel.as_mut().map(BackendChannel::read);
    let result = match heard {
        Some(Ok(true)) => session.refresh_config(),
        Some(Ok(false)) | None => Ok(()),
        Some(Err(fault)) => {
            *channel = None;
            Err(fault)
        }
    };
    match result {
        Ok(()) | Err(Fault::Closed) => {}
        Err(fault) => session.report_fault(fault),
    }
}

/// Tries until there is a backend again, or the device is gone (`false`).
fn reconnect(session: &Session) -> bool {
    let mut pause = FIRST_PAUSE;
    let (mut last, mut reported) = (String::new(), String::new());
    while !session.is_closed() {
        match session.resume() {
            Ok(()) => return !session.is_closed(),
            // It has not been started yet, or is only just starting.
            Err(Fault::Missing | Fault::NobodyListens) => last.clear(),
            Err(fault) => {
                // Once can happen to a backend that is just going away.
                let reason = fault.to_string();
                if reason == last && reason != reported {
                    session.report_fault(fault);
                    reported.clone_from(&reason);
                }
                last = reason;
            }
        }
        thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    false
}
