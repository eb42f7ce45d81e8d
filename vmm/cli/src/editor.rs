//! Text in an editor of the user's: `$VISUAL`, `$EDITOR` or the system's.

use std::fs::File;
use std::io::{BufRead, IsTerminal, Write};
use std::process::Command;

use anyhow::{Context, bail};
use bulkhead_process::signals;
use tempfile::NamedTempFile;

use crate::store;

/// The editor where nobody has chosen one.
const USUAL: &str = "vi";

/// A text that is being edited, in a file that is removed in the end.
#[derive(Debug)]
pub(crate) struct Editor {
    file: NamedTempFile,
    command: String,
}

/// What a user wants after an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// To edit the text again.
    Again,
    /// To save it as it is, whatever others have saved meanwhile.
    Force,
}

impl Editor {
    /// Writes the text into a file whose name ends with `suffix`.
    ///
    /// # Errors
    /// When that fails.
    pub(crate) fn new(text: &[u8], suffix: &str) -> anyhow::Result<Self> {
        let begin = || -> std::io::Result<NamedTempFile> {
            let mut file = tempfile::Builder::new()
                .prefix("bulkhead-")
                .suffix(suffix)
                .tempfile()?;
            file.write_all(text)?;
            file.flush()?;
            Ok(file)
        };
        let chosen = |name: &str| {
            std::env::var(name)
                .ok()
                .filter(|value| !value.trim().is_empty())
        };
        Ok(Self {
            file: begin().context("cannot write a temporary file for the editor")?,
            command: chosen("VISUAL")
                .or_else(|| chosen("EDITOR"))
                .unwrap_or(USUAL.to_owned()),
        })
    }

    /// Has the user edit the text, and returns it.
    ///
    /// # Errors
    /// When the editor cannot be started or fails, or the text is too large for a definition.
    pub(crate) fn edit(&mut self) -> anyhow::Result<Vec<u8>> {
        // A signal from the terminal is the editor's. One that ends this program removes the file first.
        let ends = signals::block_termination().context("cannot watch for signals")?;
        let command = &self.command;
        let status = Command::new("sh")
            .arg("-c")
            .arg(format!("{command} \"$@\""))
            .arg(command)
            .arg(self.file.path())
            .status()
            .with_context(|| format!("cannot start the editor '{command}'"))?;
        let signal = ends.take().context("cannot watch for signals")?;
        signals::unblock_termination();
        if !status.success() {
            bail!("the editor '{command}' ended with {status}: $EDITOR chooses another one");
        }
        if signal.is_some_and(|signal| signal != libc::SIGINT) {
            bail!("ended by a signal");
        }
        self.bytes()
    }

    /// The text as it is in the file.
    ///
    /// # Errors
    /// When it cannot be read, or is too large for a definition.
    pub(crate) fn bytes(&self) -> anyhow::Result<Vec<u8>> {
        // Many editors replace the file.
        let path = self.file.path();
        let shown = path.display();
        let file = File::open(path).with_context(|| format!("cannot open {shown}"))?;
        store::bounded(file, &shown.to_string())
    }

    /// Asks what follows an error. Without a terminal, the error is the answer.
    ///
    /// # Errors
    /// The error, when the user gives up.
    pub(crate) fn ask(&self, error: anyhow::Error) -> anyhow::Result<Answer> {
        if !std::io::stdin().is_terminal() {
            return Err(error);
        }
        bulkhead_process::say("error", &format!("{error:#}"));
        loop {
            crate::output::print(b"Failed. Try again? [y,n,f,?]: ")?;
            let mut line = String::new();
            if std::io::stdin().lock().read_line(&mut line)? == 0 {
                return Err(error);
            }
            match line
                .trim()
                .chars()
                .next()
                .unwrap_or('y')
                .to_ascii_lowercase()
            {
                'y' => return Ok(Answer::Again),
                'n' => return Err(error),
                'f' => return Ok(Answer::Force),
                _ => crate::output::print(
                    b"y - yes, start editor again\n\
                      n - no, throw away my changes\n\
                      f - force, try to redefine again\n\
                      ? - print this help\n",
                )?,
            }
        }
    }
}
