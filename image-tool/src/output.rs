//! Standard output: what was asked for. Standard error: what else there is to say. Neither stops the work when nobody reads it,
//! or when what it is written to is full.

use std::fmt::Display;
use std::io::Write as _;

/// One or more lines. A reader that has gone away is no error of ours.
pub(crate) fn line(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out
        .write_all(text.as_bytes())
        .and_then(|()| out.write_all(b"\n"));
}

/// A line on standard error.
pub(crate) fn notice(text: impl Display) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// As [`line()`], and nothing when quiet.
pub(crate) fn unless(quiet: bool, text: &str) {
    if !quiet {
        line(text);
    }
}

/// `--output`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Format {
    #[default]
    Human,
    Json,
}
