//! Signals while a command works: SIGINT, SIGTERM and SIGHUP remove incomplete files and end the process; SIGUSR1
//! prints progress.

use std::process;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bulkhead_process::signals::{self, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::output::progress::Progress;
use crate::target::incomplete;

/// Stack of the thread, which only prints lines.
const STACK: usize = 256 << 10;

/// The blocked signals, read from a signalfd.
#[derive(Debug)]
pub(crate) struct Signals(SignalFd);

impl Signals {
    /// Blocks the signals; call it before any file is staged. Terminating signals that were ignored when the process
    /// was started (`nohup`) stay ignored.
    pub(crate) fn block() -> Result<Self> {
        let mut blocked = vec![libc::SIGUSR1];
        let terminating = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];
        blocked.extend(
            terminating
                .iter()
                .filter(|&&signal| !signals::is_ignored(signal)),
        );
        let fd = signals::block(&blocked);
        Ok(Self(fd.context("cannot block signals")?))
    }

    /// Handles signals in a thread of its own; call it after confinement, which must precede the first thread.
    pub(crate) fn handle_in_thread(self, progress: Arc<Progress>) -> Result<()> {
        thread::Builder::new()
            .name("signals".to_owned())
            .stack_size(STACK)
            .spawn(move || self.run(&progress))
            .context("cannot start a thread")?;
        Ok(())
    }

    /// Waits for the duration, and handles signals that arrive.
    pub(crate) fn sleep(&self, duration: Duration) {
        let span = Timespec::try_from(duration).ok();
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        // After an error, too, the caller repeats what it waits for.
        let _ = poll(&mut fds, span.as_ref());
        self.handle(None);
    }

    fn run(&self, progress: &Progress) {
        loop {
            let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
            match poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(_) => return,
            }
            self.handle(Some(progress));
        }
    }

    /// Handles the signals that have arrived.
    fn handle(&self, progress: Option<&Progress>) {
        while let Ok(Some(signal)) = self.0.take() {
            if signal == libc::SIGUSR1 {
                progress.inspect(|progress| progress.print());
                continue;
            }
            incomplete::clean_up();
            // The status that a shell reports for a process that the signal ended.
            process::exit(128 + signal);
        }
    }
}
