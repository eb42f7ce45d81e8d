//! What the threads of a run tell its supervisor.

use std::process::ExitStatus;

/// What the supervisor waits for.
#[derive(Debug)]
pub(crate) enum Event {
    /// The process with this id does its work.
    Ready(u32),
    /// The process at this index, with this id, is gone.
    Ended(usize, u32, std::io::Result<Ended>),
    /// We were told to end.
    Stop,
}

/// How a process ended, and what it last said if that was before it was ready.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) last_words: Option<String>,
}
