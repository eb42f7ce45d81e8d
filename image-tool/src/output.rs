//! Standard output: what was asked for. Standard error: what else there is to say. Neither stops the work when nobody reads it,
//! or when what it is written to is full.

use std::borrow::Cow;
use std::fmt::Display;
use std::io::Write as _;

/// The text without what a terminal would take for commands: names in images are chosen by whoever made them.
fn harmless(text: &str) -> Cow<'_, str> {
    let is_command = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    match text.contains(is_command) {
        true => Cow::Owned(text.replace(is_command, "\u{fffd}")),
        false => Cow::Borrowed(text),
    }
}

/// One or more lines. A reader that has gone away is no error of ours.
pub(crate) fn line(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out
        .write_all(harmless(text).as_bytes())
        .and_then(|()| out.write_all(b"\n"));
}

/// A line on standard error.
pub(crate) fn notice(text: impl Display) {
    let text = text.to_string();
    let _ = writeln!(std::io::stderr().lock(), "{}", harmless(&text));
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
