//! Signals during long work: SIGINT, SIGTERM and SIGHUP remove what is unfinished and end the process; SIGUSR1 asks how
//! far the work is.

use std::io;
use std::process;
use std::sync::Arc;
use std::thread;

use bulkhead_process::signals::{self, SignalFd};
use rustix::event::{PollFd, PollFlags, poll};

use crate::progress::Progress;
use crate::unfinished;

/// Signals that wait to be heard.
#[derive(Debug)]
pub(crate) struct Watch(SignalFd);

impl Watch {
    /// Holds the signals back from now on. Before anything unfinished exists.
    pub(crate) fn new() -> io::Result<Self> {
        signals::block(&[libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGUSR1]).map(Self)
    }

    /// Hears them, in a thread. After confinement, which must come before the first thread.
    pub(crate) fn start(self, progress: Arc<Progress>) -> io::Result<()> {
        thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || self.listen(&progress))
            .map(drop)
    }

    fn listen(&self, progress: &Progress) {
        loop {
            let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
            match poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(_) => return,
            }
            while let Ok(Some(signal)) = self.0.take() {
                if signal == libc::SIGUSR1 {
                    progress.tell();
                    continue;
                }
                unfinished::abandon();
                // What a shell reports of a process that the signal ended.
                process::exit(128 + signal);
            }
        }
    }
}
