//! An event as a line in virsh's form.

use std::fmt::{self, Display};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::output::utc;
use crate::supervise::state::{Reason, RunState};

/// A type of event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Kind {
    /// A guest has begun, ended, was suspended or resumed
    Lifecycle,
    /// A guest has been reset
    Reboot,
}

impl Kind {
    pub(super) const ALL: [Self; 2] = [Self::Lifecycle, Self::Reboot];
}

impl Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lifecycle => "lifecycle",
            Self::Reboot => "reboot",
        })
    }
}

/// An event of a guest.
#[derive(Debug, Serialize)]
pub(super) struct Line {
    #[serde(rename = "event")]
    pub(super) kind: Kind,
    pub(super) domain: String,
    /// What has happened, and why: `Stopped`, `Destroyed`. A reboot has neither.
    #[serde(skip_serializing_if = "Option::is_none")]
    action: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'static str>,
    /// When, as RFC 3339 writes it, in UTC.
    timestamp: String,
    #[serde(skip)]
    milliseconds: u32,
}

impl Line {
    /// The event that a guest is in this state now; `None` for a state that is none.
    pub(super) fn lifecycle(domain: &str, state: RunState, reason: Reason) -> Option<Self> {
        let (action, detail) = match (state, reason) {
            (RunState::Running, Reason::Unpaused) => ("Resumed", "Unpaused"),
            (RunState::Running, _) => ("Started", "Booted"),
            (RunState::Paused, _) => ("Suspended", "Paused"),
            (RunState::ShutOff, Reason::Destroyed) => ("Stopped", "Destroyed"),
            (RunState::ShutOff, Reason::Crashed) => ("Stopped", "Crashed"),
            (RunState::ShutOff, Reason::Failed) => ("Stopped", "Failed"),
            (RunState::ShutOff, _) => ("Stopped", "Shutdown"),
            (RunState::Crashed, _) => ("Crashed", "Panicked"),
            (RunState::Starting | RunState::InShutdown, _) => return None,
        };
        Some(Self {
            kind: Kind::Lifecycle,
            action: Some(action),
            detail: Some(detail),
            ..Self::reboot(domain)
        })
    }

    /// The event that a guest has been reset.
    pub(super) fn reboot(domain: &str) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.unwrap_or_default();
        Self {
            kind: Kind::Reboot,
            domain: domain.to_owned(),
            action: None,
            detail: None,
            timestamp: utc(i64::try_from(now.as_secs()).unwrap_or_default()),
            milliseconds: now.subsec_millis(),
        }
    }

    pub(super) fn text(&self, with_time: bool) -> String {
        let time = match with_time {
            // virsh's form of it.
            true => {
                let seconds = self.timestamp.trim_end_matches('Z').replace('T', " ");
                format!("{seconds}.{:03}+0000: ", self.milliseconds)
            }
            false => String::new(),
        };
        let what = match (self.action, self.detail) {
            (Some(action), Some(detail)) => format!(": {action} {detail}"),
            _ => String::new(),
        };
        format!(
            "{time}event '{}' for domain '{}'{what}",
            self.kind, self.domain
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_are_virshs() {
        let line = |state, reason| Line::lifecycle("x", state, reason).map(|line| line.text(false));
        assert_eq!(
            line(RunState::Running, Reason::Booted).unwrap(),
            "event 'lifecycle' for domain 'x': Started Booted"
        );
        assert_eq!(
            line(RunState::ShutOff, Reason::Destroyed).unwrap(),
            "event 'lifecycle' for domain 'x': Stopped Destroyed"
        );
        assert_eq!(line(RunState::Starting, Reason::Booted), None);
        let line = Line {
            timestamp: "2026-11-30T19:37:44Z".to_owned(),
            milliseconds: 7,
            ..Line::reboot("x")
        };
        assert_eq!(
            line.text(true),
            "2026-11-30 19:37:44.007+0000: event 'reboot' for domain 'x'"
        );
    }
}
