//! A guest under `bulkhead run`, as a user starts it: its console line by line, its end, its processes.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::exits::{Exit, ExitWatch};
use crate::host_state;

/// How often the ends of processes are looked at while waiting for the console.
const TICK: Duration = Duration::from_millis(20);

/// A running `bulkhead run`.
pub struct GuestRun {
    child: Child,
    lines: Receiver<Line>,
    watch: ExitWatch,
    exits: Vec<Exit>,
    console: Vec<(Duration, String)>,
    start: Instant,
    deadline: Instant,
}

enum Line {
    /// From the guest's serial console.
    Console(String),
    /// From `bulkhead` itself.
    Error(String),
}

/// What a guest says in its console lines (`guest-init.sh`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Word {
    /// It has observed something.
    Ok(String),
    /// A value it reports: name and value.
    Value(String, String),
    /// Anything else it says.
    Said(String),
}

/// How a run ended.
#[derive(Debug)]
pub struct End {
    /// The status of `bulkhead run`.
    pub status: ExitStatus,
    /// The end of every process started since the run began.
    pub exits: Vec<Exit>,
    /// What `bulkhead` said.
    pub errors: Vec<String>,
}

impl GuestRun {
    /// Starts `bulkhead run`; all of it must be over within `limit`.
    pub fn start(mut command: Command, limit: Duration) -> Result<Self> {
        let watch = ExitWatch::start()?;
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("{command:?}"))?;
        let (sender, lines) = channel();
        let stdout = child.stdout.take().context("standard output")?;
        let stderr = child.stderr.take().context("standard error")?;
        let errors = sender.clone();
        std::thread::spawn(move || {
            each_line(stdout, |line| sender.send(Line::Console(line)).is_ok())
        });
        std::thread::spawn(move || {
            each_line(stderr, |line| errors.send(Line::Error(line)).is_ok())
        });
        let start = Instant::now();
        Ok(Self {
            child,
            lines,
            watch,
            exits: Vec::new(),
            console: Vec::new(),
            start,
            deadline: start + limit,
        })
    }

    /// The process id of `bulkhead run`.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The guest's next word; `None` when the run is over. An error if the guest reports a failure.
    pub fn next_word(&mut self) -> Result<Option<Word>> {
        loop {
            self.exits.extend(self.watch.poll()?);
            if Instant::now() > self.deadline {
                bail!("the run did not end in time; {}", self.stuck());
            }
            match self.lines.recv_timeout(TICK) {
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Ok(Line::Error(line)) => self.note(format!("bulkhead: {line}")),
                Ok(Line::Console(line)) => {
                    let word = parse(&line);
                    self.note(line);
                    match word {
                        Some(Word::Said(text)) if text.starts_with("FAILED") => {
                            bail!("the guest says: {text}; {}", self.story())
                        }
                        Some(word) => return Ok(Some(word)),
                        None => {}
                    }
                }
            }
        }
    }

    /// Waits until the guest has said `text`.
    pub fn wait_for(&mut self, text: &str) -> Result<()> {
        while let Some(word) = self.next_word()? {
            if word == Word::Said(text.to_owned()) {
                return Ok(());
            }
        }
        bail!(
            "the run ended before the guest said {text:?}; {}",
            self.story()
        )
    }

    /// Waits until the run is over, and returns how it ended.
    pub fn wait(mut self) -> Result<End> {
        while self.next_word()?.is_some() {}
        loop {
            self.exits.extend(self.watch.poll()?);
            if let Some(status) = self.child.try_wait().context("wait for bulkhead")? {
                self.exits.extend(self.watch.poll()?);
                let lines = self
                    .console
                    .iter()
                    .filter_map(|(_, line)| line.strip_prefix("bulkhead: "));
                let errors = lines.map(str::to_owned).collect();
                return Ok(End {
                    status,
                    exits: std::mem::take(&mut self.exits),
                    errors,
                });
            }
            if Instant::now() > self.deadline {
                bail!("bulkhead run did not end in time; {}", self.stuck());
            }
            std::thread::sleep(TICK);
        }
    }

    fn note(&mut self, line: String) {
        self.console.push((self.start.elapsed(), line));
    }

    /// All that was said so far, and after how many seconds, for an error message.
    pub fn story(&self) -> String {
        let lines = self.console.iter();
        let lines: Vec<String> = lines
            .map(|(when, line)| format!("{:7.2} {line}", when.as_secs_f64()))
            .collect();
        format!("what was said until then:\n  {}", lines.join("\n  "))
    }

    /// The same of a run that does not end, and what its processes wait for.
    fn stuck(&self) -> String {
        let threads = host_state::threads_of("bulkhead").join("\n  ");
        format!("{}\n  {threads}", self.story())
    }
}

impl Drop for GuestRun {
    /// Ends the run if a test gives up on it, so that it cannot disturb the next.
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let pid = rustix::process::Pid::from_child(&self.child);
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            let patience = Instant::now() + Duration::from_secs(10);
            while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < patience {
                std::thread::sleep(TICK);
            }
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn each_line(from: impl Read, mut take: impl FnMut(String) -> bool) {
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    while let Ok(1..) = from.read_until(b'\n', &mut line) {
        if !take(String::from_utf8_lossy(&line).trim_end().to_owned()) {
            break;
        }
        line.clear();
    }
}

fn parse(line: &str) -> Option<Word> {
    let (_, text) = line.split_once("guest: ")?;
    let value = || {
        let (name, value) = text.strip_prefix("value ")?.split_once(' ')?;
        Some(Word::Value(name.to_owned(), value.to_owned()))
    };
    let ok = || Some(Word::Ok(text.strip_prefix("ok ")?.to_owned()));
    Some(
        ok().or_else(value)
            .unwrap_or_else(|| Word::Said(text.to_owned())),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_speaks_in_lines() {
        assert_eq!(parse("[    1.0] something else"), None);
        assert_eq!(parse("guest: ok a b"), Some(Word::Ok("a b".into())));
        assert_eq!(
            parse("\rguest: value new 12 34"),
            Some(Word::Value("new".into(), "12 34".into()))
        );
        assert_eq!(
            parse("guest: FAILED x"),
            Some(Word::Said("FAILED x".into()))
        );
    }
}
