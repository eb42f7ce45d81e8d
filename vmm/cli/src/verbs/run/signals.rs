//! Signals: those that end the run, and those of a shell's job control.

use std::io;
use std::time::{Duration, Instant};

use bulkhead_process::signals::{SignalFd, block_termination, block_unless_ignored};
use crossbeam_channel::Sender;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Signal, getpid, kill_process};

use super::console::Terminal;
use super::event::Event;

/// A container's first process passes on what a terminal sends to all: the same signal twice in this time is one.
const ONE: Duration = Duration::from_millis(500);

/// The signals, blocked.
pub(crate) struct Signals {
    end: SignalFd,
    job: SignalFd,
}

impl Signals {
    /// To be called before any thread is started, so that none of them takes the signals.
    pub(crate) fn block() -> io::Result<Self> {
        Ok(Self {
            end: block_termination()?,
            job: block_unless_ignored(&[libc::SIGTSTP, libc::SIGCONT])?,
        })
    }

    /// Begins to heed them: ends are sent to `events`; for a stop the terminal is given back.
    pub(crate) fn serve(self, terminal: Option<Terminal>, events: Sender<Event>) -> io::Result<()> {
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(move || self.pass_on(terminal.as_ref(), &events))
            .map(drop)
    }

    fn pass_on(&self, terminal: Option<&Terminal>, events: &Sender<Event>) -> Option<()> {
        let mut last: Option<Instant> = None;
        loop {
            let mut fds = [&self.end, &self.job].map(|fd| PollFd::new(fd, PollFlags::IN));
            match poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(_) => return None,
            }
            while self.end.take().ok()?.is_some() {
                if last.is_none_or(|last| last.elapsed() > ONE) {
                    events.send(Event::Stop).ok()?;
                }
                last = Some(Instant::now());
            }
            while let Some(signal) = self.job.take().ok()? {
                match (signal, terminal) {
                    (libc::SIGTSTP, _) => stop(terminal),
                    // Whoever had the terminal meanwhile has set it up for itself.
                    (_, Some(terminal)) => terminal.set_up(),
                    _ => {}
                }
            }
        }
    }
}

/// Stops this process, as it would have been by itself; the guest runs on. This may return a moment before: what is to be done when it
/// continues waits for SIGCONT.
fn stop(terminal: Option<&Terminal>) {
    if let Some(terminal) = terminal {
        terminal.give_back();
    }
    // Cannot fail for oneself.
    let _ = kill_process(getpid(), Signal::STOP);
}
