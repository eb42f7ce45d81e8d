//! What the threads of a run tell its supervisor.

use std::process::ExitStatus;

/// What the supervisor waits for.
#[derive(Debug)]
pub(crate) enum Event {
    /// The process with this id does its work.
    Ready(u32),
    /// The process at this index, with this id, is gone.
    Ended(usize, u32, std::io::Result<Ended>),
    /// What has become of the helper.
    Helper(Helper),
    /// We were told to end.
    Stop,
}

/// What has become of the helper.
#[derive(Debug)]
pub(crate) enum Helper {
    /// It is there, and stays as long as we need it.
    Held,
    /// It is gone, for that reason if it was ours; another is looked for or started.
    Gone(Option<Ended>),
    /// There is none, and none could be started. After the first time, that is tried again and again.
    Failed(anyhow::Error),
}

/// How a process ended, and what it last said if that was before it was ready.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) last_words: Option<String>,
}

impl Ended {
    /// What it last said, or else its status.
    pub(crate) fn why(&self) -> String {
        self.last_words
            .clone()
            .unwrap_or_else(|| self.status.to_string())
    }

    /// What kept a process from beginning, as an error of ours. An argument it refused is one we were given.
    pub(crate) fn never_began(&self, name: &str) -> anyhow::Error {
        let message = format!("{name}: {}", self.why());
        match self.status.code() {
            Some(status) if status == i32::from(bulkhead_process::USAGE) => {
                bulkhead_process::usage(message)
            }
            _ => anyhow::anyhow!(message),
        }
    }
}
