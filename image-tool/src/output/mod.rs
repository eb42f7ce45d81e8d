//! Standard output: what was asked for. Standard error: what else there is to say.

pub(crate) mod json;
pub(crate) mod progress;
pub(crate) mod reason;
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

/// The first error of standard output, by which an answer got lost.
static LOST: Mutex<Option<io::Error>> = Mutex::new(None);

fn lost() -> MutexGuard<'static, Option<io::Error>> {
    LOST.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The text without what a terminal would take for commands: names in images are chosen by whoever made them.
fn harmless(text: &str) -> Cow<'_, str> {
    let is_command = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    match text.contains(is_command) {
        true => Cow::Owned(text.replace(is_command, "\u{fffd}")),
        false => Cow::Borrowed(text),
    }
}

/// One or more lines, which are what the command was asked for. Should they not be written, the command has failed: [`check()`].
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

/// Why an answer is not there.
pub(crate) fn not_written(error: &io::Error) -> anyhow::Error {
    anyhow!("Could not write to standard output: {}", reason::os(error))
}

/// Standard output, for an answer of any length. To be flushed.
pub(crate) fn stream() -> impl Write {
    io::BufWriter::new(Patient(io::stdout().lock()))
}

/// A line that says what the command does, unless it is to be quiet. Should nobody read it, the work goes on.
pub(crate) fn unless(quiet: bool, text: &str) {
    if !quiet {
        let _ = write(text);
    }
}

fn write(text: &str) -> io::Result<()> {
    let mut out = stream();
    out.write_all(harmless(text).as_bytes())?;
    out.write_all(b"\n")?;
    out.flush()
}

/// What is on the last line of standard output.
#[derive(Clone, Copy, PartialEq, Eq)]
enum LastLine {
    /// Nothing.
    Empty,
    /// How far the command is.
    Progress,
    /// The same, until a notice ended the line.
    Ended,
}

static LAST_LINE: Mutex<LastLine> = Mutex::new(LastLine::Empty);

fn last_line() -> MutexGuard<'static, LastLine> {
    LAST_LINE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How far the command is, in the place of what was said of that before. Should nobody read it, the work goes on.
pub(crate) fn progress(text: &str) {
    let mut line = last_line();
    *line = LastLine::Progress;
    let mut out = Patient(io::stdout().lock());
    let _ = write!(out, "{text}\r").and_then(|()| out.flush());
}

/// The command's progress is at its end.
pub(crate) fn end_of_progress() {
    let mut line = last_line();
    if *line != LastLine::Ended {
        unless(false, "");
    }
    *line = LastLine::Empty;
}

/// A line on standard error; progress on standard output ends its own before.
pub(crate) fn notice(text: impl Display) {
    let mut line = last_line();
    if *line == LastLine::Progress {
        unless(false, "");
        *line = LastLine::Ended;
    }
    drop(line);
    let text = text.to_string();
    let mut error = Patient(io::stderr().lock());
    // There is nobody else to tell.
    let _ = writeln!(error, "{}", harmless(&text));
}

/// A descriptor that is waited for, should whoever shares it have made it one that does not wait by itself.
struct Patient<W: Write + AsFd>(W);

impl<W: Write + AsFd> Patient<W> {
    fn wait(&self) {
        let mut fds = [PollFd::new(&self.0, PollFlags::OUT)];
        // What is wrong with it, the next write says.
        let _ = poll(&mut fds, None);
    }
}

impl<W: Write + AsFd> Write for Patient<W> {
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
