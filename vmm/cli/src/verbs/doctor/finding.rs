//! What a check finds.

use serde::Serialize;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    /// As it should be.
    Ok,
    /// Guests run; something is slower, less confined or not available.
    Warn,
    /// Guests, or a part of them, do not run.
    Fail,
}

/// One result of a check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    check: &'static str,
    status: Status,
    detail: String,
    /// The command that mends it.
    #[serde(skip_serializing_if = "Option::is_none")]
    run: Option<String>,
    /// Only root may run it.
    #[serde(skip_serializing_if = "is_false")]
    as_root: bool,
    /// What mends it, where that is no command.
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

impl Finding {
    pub(crate) fn ok(check: &'static str, detail: impl Into<String>) -> Self {
        Self::new(check, Status::Ok, detail)
    }

    pub(crate) fn warn(check: &'static str, detail: impl Into<String>) -> Self {
        Self::new(check, Status::Warn, detail)
    }

    pub(crate) fn fail(check: &'static str, detail: impl Into<String>) -> Self {
        Self::new(check, Status::Fail, detail)
    }

    fn new(check: &'static str, status: Status, detail: impl Into<String>) -> Self {
        Self {
            check,
            status,
            detail: detail.into(),
            run: None,
            as_root: false,
            advice: None,
        }
    }

    /// With the command that mends it.
    pub(crate) fn run(mut self, command: impl Into<String>) -> Self {
        self.run = Some(command.into());
        self
    }

    /// With the command of root's that mends it.
    pub(crate) fn run_as_root(self, command: impl Into<String>) -> Self {
        Self {
            as_root: true,
            ..self.run(command)
        }
    }

    /// With what mends it, where that is no command.
    pub(crate) fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }

    pub(crate) fn check(&self) -> &'static str {
        self.check
    }

    pub(crate) fn status(&self) -> Status {
        self.status
    }

    pub(crate) fn detail(&self) -> &str {
        &self.detail
    }

    /// How the line about what to do begins for this user, and what it says.
    pub(crate) fn mend(&self, is_root: bool) -> Option<(&'static str, &str)> {
        match (&self.run, &self.advice) {
            (Some(command), _) if self.as_root && !is_root => Some(("run as root", command)),
            (Some(command), _) => Some(("run", command)),
            (None, Some(advice)) => Some(("do", advice)),
            (None, None) => None,
        }
    }

    pub(crate) fn is_failure(&self) -> bool {
        self.status == Status::Fail
    }
}

#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_false(value: &bool) -> bool {
    !value
}
