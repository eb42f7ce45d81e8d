//! Signals during long work: SIGINT, SIGTERM and SIGHUP remove what is unfinished and end the process; SIGUSR1 asks how
//! far the work is.

use std::process;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bulkhead_process::signals::{self, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::output::progress::Progress;
use crate::target::unfinished;

/// It prints a line at the most.
const STACK: usize = 256 << 10;

/// Signals that wait to be heard.
#[derive(Debug)]
pub(crate) struct Watch(SignalFd);

impl Watch {
    /// Holds the signals back from now on. Before anything unfinished exists. Those that end the process and were ignored when it was
    /// started (`nohup`) stay ignored.
    pub(crate) fn new() -> Result<Self> {
        let mut heeded = vec![libc::SIGUSR1];
        let ending = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];
        heeded.extend(
            ending
                .iter()
                .filter(|&&signal| !signals::is_ignored(signal)),
        );
        let held = signals::block(&heeded);
        Ok(Self(held.context("cannot hold signals back")?))
    }

    /// Hears them, in a thread. After confinement, which must come before the first thread.
    pub(crate) fn start(self, progress: Arc<Progress>) -> Result<()> {
        thread::Builder::new()
            .name("signals".to_owned())
            .stack_size(STACK)
            .spawn(move || self.listen(&progress))
            .context("cannot start a thread")?;
        Ok(())
    }

    /// Waits for that long, and hears signals meanwhile.
    pub(crate) fn pause(&self, duration: Duration) {
        let span = Timespec::try_from(duration).ok();
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        // Whatever comes of it, the caller looks again at what it waits for.
        let _ = poll(&mut fds, span.as_ref());
        self.hear(None);
    }

    fn listen(&self, progress: &Progress) {
        loop {
            let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
            match poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(_) => return,
            }
            self.hear(Some(progress));
        }
    }

    /// Does what the signals that have arrived say.
    fn hear(&self, progress: Option<&Progress>) {
        while let Ok(Some(signal)) = self.0.take() {
            if signal == libc::SIGUSR1 {
                progress.inspect(|progress| progress.tell());
                continue;
            }
            unfinished::abandon();
            // What a shell reports of a process that the signal ended.
            process::exit(128 + signal);
        }
    }
}
