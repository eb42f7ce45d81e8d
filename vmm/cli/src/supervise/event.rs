//! The events that the threads of a supervisor send to its main thread.

use std::process::ExitStatus;

use super::control::{Order, Responder};
use super::state::{Reason, RunState};

/// An event that the supervisor waits for.
#[derive(Debug)]
pub(crate) enum Event {
    /// The process with this id is ready.
    Ready(u32),
    /// The process at this index of the plan, with this id, has ended.
    Ended(usize, u32, std::io::Result<Ended>),
    /// The state of the helper has changed.
    Helper(Helper),
    /// A signal ends the run.
    Stop,
    /// A client orders something.
    Order(Order, Responder),
    /// A client has had the monitor change the guest's state.
    Changed(RunState, Reason),
}

/// The state of the network helper.
#[derive(Debug)]
pub(crate) enum Helper {
    /// It is held, and stays as long as the run needs it.
    Held,
    /// It is gone, and another is looked for or started. `Some`: how the one that this run has started ended.
    Gone(Option<Ended>),
    /// None runs and none could be started. Once a helper was held, this is tried again.
    Failed(anyhow::Error),
}

/// How a process ended, and the last line it wrote if it was not ready yet.
#[derive(Debug)]
pub(crate) struct Ended {
    /// `None`: it was no child of this process.
    pub(crate) status: Option<ExitStatus>,
    pub(crate) last_line: Option<String>,
}

impl Ended {
    /// Whether it ended with status 0, as far as that is known.
    pub(crate) fn is_success(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }

    /// The last line it wrote, or else its status.
    pub(crate) fn why(&self) -> String {
        let status = || match self.status {
            Some(status) => status.to_string(),
            None => "exit status unknown".to_owned(),
        };
        self.last_line.clone().unwrap_or_else(status)
    }

    /// The error of the run for a process that never got ready. A usage error of it is one of the run.
    pub(crate) fn never_began(&self, name: &str) -> anyhow::Error {
        let message = format!("{name}: {}", self.why());
        match self.status.and_then(|status| status.code()) {
            Some(status) if status == i32::from(bulkhead_process::USAGE) => {
                bulkhead_process::usage(message)
            }
            _ => anyhow::anyhow!(message),
        }
    }
}
