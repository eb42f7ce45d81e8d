//! What a verb prints on standard output: text in virsh's forms, or JSON.

mod table;

use std::io::{self, Write};

use anyhow::Context;
use serde::Serialize;

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

/// A time in seconds since 1970, in UTC, as RFC 3339 writes it.
pub(crate) fn utc(seconds: i64) -> String {
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = date(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// The date of a number of days since 1970, in years that begin in March, so that the leap day is the last of one.
fn date(days: i64) -> (i64, i64, i64) {
    const ERA: i64 = 146_097;
    let days = days + 719_468;
    let (era, day) = (days.div_euclid(ERA), days.rem_euclid(ERA));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let of_month = of_year - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    (year + era * 400 + next, month, of_month)
}

#[cfg(test)]
mod tests {
    use super::utc;

    #[test]
    fn times_are_those_of_date() {
        for seconds in [
            0,
            951_782_399,
            951_782_400,
            1_709_208_000,
            1_796_061_248,
            4_107_542_400,
            -1,
        ] {
            let date = std::process::Command::new("date")
                .args(["-u", "+%Y-%m-%dT%H:%M:%SZ", "-d", &format!("@{seconds}")])
                .output()
                .unwrap();
            assert_eq!(format!("{}\n", utc(seconds)).into_bytes(), date.stdout);
        }
    }
}
