//! What a verb prints on standard output: text in virsh's forms, or JSON.

mod table;

use std::io::{self, Write};

use anyhow::Context;
use serde::Serialize;

#[allow(unused_imports, reason = "the verbs that print use them")]
pub(crate) use table::{Table, fields};

/// The form of what is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people, as virsh prints it
    #[default]
    Text,
    /// For programs
    Json,
}

/// The options about output that every verb has.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub(crate) struct Output {
    /// Form of the output
    #[arg(
        long = "output",
        short = 'o',
        global = true,
        value_name = "FORMAT",
        default_value = "text"
    )]
    format: Format,
    /// Print no headings and no messages of success
    #[arg(long, short, global = true)]
    quiet: bool,
}

impl Output {
    /// Whether the output is JSON.
    pub(crate) fn is_json(self) -> bool {
        self.format == Format::Json
    }

    /// Whether headings and messages of success are left out.
    pub(crate) fn is_quiet(self) -> bool {
        self.quiet
    }

    /// Prints a result: `value` as JSON, or its text, which ends with a line feed unless it is empty.
    pub(crate) fn show<T: Serialize>(
        self,
        value: &T,
        text: impl FnOnce(&T) -> String,
    ) -> anyhow::Result<()> {
        let text = match self.format {
            Format::Json => {
                let mut json = serde_json::to_string_pretty(value).context("standard output")?;
                json.push('\n');
                json
            }
            Format::Text => text(value),
        };
        print(text.as_bytes())
    }

    /// Prints a table: `rows` as JSON, or as a table with a heading unless that is unwanted.
    pub(crate) fn show_table<T: Serialize>(
        self,
        rows: &T,
        table: impl FnOnce(&T) -> Table,
    ) -> anyhow::Result<()> {
        self.show(rows, |rows| table(rows).render(!self.quiet))
    }

    /// Prints a message of success, which programs have in the exit status.
    pub(crate) fn success(self, message: &str) -> anyhow::Result<()> {
        match self.quiet || self.is_json() {
            true => Ok(()),
            false => print(format!("{message}\n").as_bytes()),
        }
    }

    /// Prints the blank line that follows the output of each command, as virsh does.
    pub(crate) fn end_of_command(self) -> anyhow::Result<()> {
        self.success("")
    }
}

/// Writes to standard output. A reader that has gone away, as that of a pipe into `head`, is no error.
pub(crate) fn print(bytes: &[u8]) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("standard output"),
    }
}
