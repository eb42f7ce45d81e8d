//! The signals that end the run, and those of a shell's job control.

use std::io;
use std::time::{Duration, Instant};

use bulkhead_process::signals::{SignalFd, block_termination, block_unless_ignored};
use crossbeam_channel::Sender;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Signal, getpid, kill_process};

use super::event::Event;
use crate::terminal::Terminal;

/// A terminal's signal reaches this process twice in a container, since the first process passes it on. Within this
/// time it counts once.
const ONE: Duration = Duration::from_millis(500);

/// The blocked signals.
pub(crate) struct Signals {
    end: SignalFd,
    job: SignalFd,
}

impl Signals {
    /// Blocks the signals. This is called before any thread is started, since threads inherit the mask.
    pub(crate) fn block() -> io::Result<Self> {
        Ok(Self {
            end: block_termination()?,
            job: block_unless_ignored(&[libc::SIGTSTP, libc::SIGCONT])?,
        })
    }

    /// Starts the thread that handles them: it sends [`Event::Stop`], and restores the terminal when the job is
    /// stopped.
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
                    // Another job may have changed the terminal's settings meanwhile.
                    (_, Some(terminal)) => terminal.set_up(),
                    _ => {}
                }
            }
        }
    }
}

/// Stops this process, as SIGTSTP does if it is not blocked. The guest runs on. It may return before the process is
/// stopped, so all that is to be done afterwards waits for SIGCONT.
fn stop(terminal: Option<&Terminal>) {
    if let Some(terminal) = terminal {
        terminal.give_back();
    }
    // A process can always signal itself.
    let _ = kill_process(getpid(), Signal::STOP);
}
