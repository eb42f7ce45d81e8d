//! The interactive shell: `bulkhead` without a verb. Each command runs as a process of its own, as if it were typed at
//! a shell, so that none can end or damage this one.

mod complete;
mod session;
mod terminal;
mod words;

use std::ffi::OsString;
use std::io::{IsTerminal, Read, Write};
use std::process::ExitCode;

use anyhow::Context;

use crate::command_line;
use crate::verbs::help;
pub(crate) use session::{Cd, Echo, Pwd, Quit, echo, outside, pwd};
use session::{Next, Session};

/// The most that is read from standard input when that is no terminal.
const LONGEST: u64 = 16 << 20;

/// Runs commands from the terminal, or those that standard input has. `options` are those of every command.
pub(crate) fn run(options: Vec<OsString>) -> anyhow::Result<ExitCode> {
    if std::io::stdin().is_terminal() {
        return terminal::run(Session::new(options, true)?);
    }
    let mut text = String::new();
    let input = std::io::stdin().lock().take(LONGEST);
    { input }
        .read_to_string(&mut text)
        .context("standard input")?;
    let mut session = Session::new(options, true)?.without_input();
    session.run(&text);
    if !session.has_run() {
        let help = help::grouped(&command_line::command());
        // Where standard error is closed, the status says it alone.
        let _ = std::io::stderr().write_all(help.as_bytes());
        return Ok(ExitCode::from(bulkhead_process::USAGE));
    }
    Ok(session.status())
}

/// Runs the commands of one argument, which are separated by semicolons.
pub(crate) fn run_line(options: Vec<OsString>, line: &str) -> anyhow::Result<ExitCode> {
    let mut session = Session::new(options, false)?;
    session.run(line);
    Ok(session.status())
}

/// Runs a line, and returns whether the shell goes on.
fn goes_on(session: &mut Session, line: &str) -> bool {
    session.run(line) == Next::Command
}
