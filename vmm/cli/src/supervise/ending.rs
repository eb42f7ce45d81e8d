//! How a guest ended: from its monitor's exit status, or, for a monitor that is no child of this supervisor, from the
//! events that it wrote.

use std::path::Path;

use serde::Deserialize;

use super::event::Ended;
use super::state::{Reason, RunState};
use super::supervisor::Outcome;
use crate::guest::EVENTS;

/// The monitor's status when the guest resets.
pub(super) const RESET: i32 = 3;
/// The monitor's status when the guest crashes.
pub(super) const CRASHED: i32 = 4;

/// The state of a guest that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ending {
    pub(crate) state: RunState,
    pub(crate) reason: Reason,
}

impl From<&anyhow::Result<Outcome>> for Ending {
    fn from(outcome: &anyhow::Result<Outcome>) -> Self {
        let reason = match outcome {
            Ok(Outcome::Ended(CRASHED)) => Reason::Crashed,
            Ok(Outcome::Ended(_)) => Reason::Shutdown,
            Ok(Outcome::Stopped | Outcome::Destroyed) => Reason::Destroyed,
            Err(_) => Reason::Failed,
        };
        let state = RunState::ShutOff;
        Self { state, reason }
    }
}

/// The monitor's status, which becomes the run's. A death by signal, or an end before the guest began, is an error of
/// the run.
pub(super) fn monitor_ended(ended: &Ended, began: bool, folder: &Path) -> anyhow::Result<i32> {
    let code = match ended.status {
        Some(status) => status.code(),
        None => status_by_events(&folder.join(EVENTS)),
    };
    match code {
        Some(0) => Ok(0),
        Some(status) if began => Ok(status),
        _ => Err(ended.never_began("vmm")),
    }
}

#[derive(Deserialize)]
struct MonitorEvent {
    event: String,
    properties: Option<Properties>,
}

#[derive(Deserialize)]
struct Properties {
    status: Option<String>,
}

/// The exit status by the last of the monitor's events. Returns `None` for one that was killed.
fn status_by_events(path: &Path) -> Option<i32> {
    let text = std::fs::read_to_string(path).ok()?;
    let events = serde_json::Deserializer::from_str(&text).into_iter::<MonitorEvent>();
    let last = events.map_while(Result::ok).last()?;
    match last.event.as_str() {
        "shutdown" => last.properties?.status?.parse().ok(),
        _ => None,
    }
}
