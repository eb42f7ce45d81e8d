//! `--salvage`: a copy that goes on where the source cannot be read.

use super::input::Position;
use crate::output::{reason, report};

/// What to do about sources that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Salvage {
    pub(crate) quiet: bool,
}

impl Salvage {
    /// Says what could not be done, unless nobody wants to know.
    pub(super) fn warn(self, what: &str, offset: u64, error: &qcow::Error, at: &Position<'_>) {
        if self.quiet {
            return;
        }
        let cause = reason::cause(error, at.disk.0.path());
        report::warning(format_args!("error while {what} offset {offset}: {cause}"));
    }
}
