//! `--salvage`: copying on after read errors.

use super::input::Position;
use crate::output::{errors, report};

/// How read errors are skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Salvage {
    /// Without warnings.
    pub(crate) quiet: bool,
}

impl Salvage {
    /// Warns about a failed read or lookup, unless it is quiet.
    pub(super) fn warn(self, what: &str, offset: u64, error: &qcow::Error, at: &Position<'_>) {
        if self.quiet {
            return;
        }
        let cause = errors::cause(error, at.disk.0.path());
        report::warning(format_args!("error while {what} offset {offset}: {cause}"));
    }

    /// Warns about data past the end of the image's file, unless it is quiet.
    pub(super) fn warn_of_missing(self, offset: u64, len: u64) {
        if !self.quiet {
            report::warning(format_args!(
                "error while reading offset {offset}: {len} bytes lie past the end of the image's file"
            ));
        }
    }
}
