//! `bulkhead event`: waits for changes of guests' states.

mod line;
mod watch;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use crossbeam_channel::RecvTimeoutError;

use crate::domain::Domain;
use crate::output::{Output, print};
use line::{Kind, Line};
use watch::{News, Watch};

/// Which events are waited for, and how long.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Guest whose events are waited for: its name, id or UUID. Without this option, those of all guests
    #[arg(long, value_name = "DOMAIN")]
    domain: Option<String>,
    /// Type of event to wait for
    #[arg(long, value_name = "EVENT", conflicts_with = "all")]
    event: Option<Kind>,
    /// Wait for events of all types
    #[arg(long)]
    all: bool,
    /// Print events until the timeout or an interrupt, not one alone
    #[arg(long = "loop")]
    repeat: bool,
    /// Give up after so many seconds
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    timeout: Option<u64>,
    /// List the types of events
    #[arg(long)]
    list: bool,
    /// Print the time before each event
    #[arg(long)]
    timestamp: bool,
}

/// Why no more events are waited for.
enum End {
    Once,
    Timeout,
    Interrupt,
}

pub(crate) fn run(args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    if args.list {
        output.show(&Kind::ALL, |kinds| {
            kinds.iter().map(|kind| format!("{kind}\n")).collect()
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    if !args.all && args.event.is_none() {
        bail!("one of --list, --all, or --event <type> is required");
    }
    let only = args.domain.as_deref().map(Domain::find).transpose()?;
    let only = only.map(|domain| domain.name().to_owned());
    let (end, count) = wait(args, only.as_deref(), output)?;
    match end {
        End::Once => {}
        End::Timeout => output.success("event loop timed out")?,
        End::Interrupt => output.success("event loop interrupted")?,
    }
    output.success(&format!("events received: {count}"))?;
    // As virsh: to have waited for nothing is a failure.
    Ok(ExitCode::from(u8::from(count == 0)))
}

fn wait(args: &Args, only: Option<&str>, output: Output) -> anyhow::Result<(End, u64)> {
    let timeout = args.timeout.map(Duration::from_secs);
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    let mut watch = Watch::start().context("cannot watch the runtime folder")?;
    let mut count = 0;
    loop {
        let news = match deadline {
            Some(deadline) => match watch.news().recv_deadline(deadline) {
                Ok(news) => news,
                Err(RecvTimeoutError::Timeout) => return Ok((End::Timeout, count)),
                Err(RecvTimeoutError::Disconnected) => bail!("lost track of the runtime folder"),
            },
            None => watch.news().recv().context("the runtime folder")?,
        };
        if matches!(news, News::Interrupt) {
            return Ok((End::Interrupt, count));
        }
        for line in watch.lines(news) {
            let is_wanted = only.is_none_or(|only| only == line.domain)
                && args.event.is_none_or(|event| event == line.kind);
            if !is_wanted {
                continue;
            }
            show(&line, args.timestamp, output)?;
            count += 1;
            if !args.repeat {
                return Ok((End::Once, count));
            }
        }
    }
}

/// Prints an event at once: whoever reads it acts on it.
fn show(line: &Line, with_time: bool, output: Output) -> anyhow::Result<()> {
    let mut text = match output.is_json() {
        true => serde_json::to_string(line)?,
        false => line.text(with_time),
    };
    text.push('\n');
    print(text.as_bytes())
}
