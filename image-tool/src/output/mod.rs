//! Writing to standard output (results) and standard error (messages).

pub(crate) mod errors;
pub(crate) mod json;
pub(crate) mod progress;
pub(crate) mod report;
pub(crate) mod size;
pub(crate) mod snapshot_list;

use std::borrow::Cow;
use std::fmt::Display;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Result, anyhow};
use rustix::event::{PollFd, PollFlags, poll};

/// The first error of standard output, which lost a part of a result.
static LOST: Mutex<Option<io::Error>> = Mutex::new(None);

fn lost() -> MutexGuard<'static, Option<io::Error>> {
    LOST.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Replaces control characters: names in an image must not command the terminal.
fn printable(text: &str) -> Cow<'_, str> {
    let is_command = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    match text.contains(is_command) {
        true => Cow::Owned(text.replace(is_command, "\u{fffd}")),
        false => Cow::Borrowed(text),
    }
}

/// Prints lines of a result. If they cannot be written, [`check()`] fails the command.
pub(crate) fn line(text: &str) {
    if let Err(error) = write(text) {
        lost().get_or_insert(error);
    }
}

/// Whether every answer was written.
pub(crate) fn check() -> Result<()> {
    let lost = lost().take();
    lost.map_or(Ok(()), |error| Err(not_written(&error)))
}

/// The error for a result that could not be written.
pub(crate) fn not_written(error: &io::Error) -> anyhow::Error {
    anyhow!(
        "Could not write to standard output: {}",
        errors::describe_os(error)
    )
}

/// Standard output, buffered, for a long result. The caller flushes it.
pub(crate) fn stream() -> impl Write {
    io::BufWriter::new(Blocking(io::stdout().lock()))
}

/// Prints a line about what the command does, unless it is quiet. Errors are ignored: the work matters, not the line.
pub(crate) fn announce(quiet: bool, text: &str) {
    if !quiet {
        let _ = write(text);
    }
}

fn write(text: &str) -> io::Result<()> {
    let mut out = stream();
    out.write_all(printable(text).as_bytes())?;
    out.write_all(b"\n")?;
    out.flush()
}

/// The state of the last line of standard output.
#[derive(Clone, Copy, PartialEq, Eq)]
enum LastLine {
    /// It is empty.
    Empty,
    /// It shows progress.
    Progress,
    /// It showed progress, and a notice ended it.
    Ended,
}

static LAST_LINE: Mutex<LastLine> = Mutex::new(LastLine::Empty);

fn last_line() -> MutexGuard<'static, LastLine> {
    LAST_LINE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Prints progress over the last progress line. Errors are ignored: the work matters, not the line.
pub(crate) fn progress(text: &str) {
    let mut line = last_line();
    *line = LastLine::Progress;
    let mut out = Blocking(io::stdout().lock());
    let _ = write!(out, "{text}\r").and_then(|()| out.flush());
}

/// Ends the progress line.
pub(crate) fn end_of_progress() {
    let mut line = last_line();
    if *line != LastLine::Ended {
        announce(false, "");
    }
    *line = LastLine::Empty;
}

/// Prints a line to standard error, after ending a progress line.
pub(crate) fn notice(text: impl Display) {
    let mut line = last_line();
    if *line == LastLine::Progress {
        announce(false, "");
        *line = LastLine::Ended;
    }
    drop(line);
    let text = text.to_string();
    let mut error = Blocking(io::stderr().lock());
    // An error of standard error cannot be reported anywhere.
    let _ = writeln!(error, "{}", printable(&text));
}

/// Waits where a write would block: another process that shares the open file may have set O_NONBLOCK.
struct Blocking<W: Write + AsFd>(W);

impl<W: Write + AsFd> Blocking<W> {
    fn wait(&self) {
        let mut fds = [PollFd::new(&self.0, PollFlags::OUT)];
        // The next write returns the error, if there is one.
        let _ = poll(&mut fds, None);
    }
}

impl<W: Write + AsFd> Write for Blocking<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.0.write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait(),
                done => return done,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        loop {
            match self.0.flush() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait(),
                done => return done,
            }
        }
    }
}

/// `--output`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Format {
    #[default]
    Human,
    Json,
}
