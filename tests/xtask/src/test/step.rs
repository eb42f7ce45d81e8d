//! One step: commands run in a row, each within a time limit, and what they say of tests that ran.

use std::io::{BufRead, BufReader};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::run;

/// No single command may take longer, in seconds.
const TIME_LIMIT: &str = "3600";

/// How much of what a failed command has said is shown.
const SHOWN_LINES: usize = 200;

/// Commands under a name.
pub(super) struct Step {
    pub(super) name: &'static str,
    work: Work,
    /// These run after the others, several at a time.
    beside: Vec<Command>,
}

enum Work {
    Commands(Vec<Command>),
    Skip(String),
}

/// What came of a step.
#[derive(Default)]
pub(super) struct Outcome {
    pub(super) passed: usize,
    /// Names or reasons.
    pub(super) failed: Vec<String>,
    /// Name and reason of each test that could not run here.
    pub(super) skipped: Vec<String>,
    pub(super) took: Duration,
}

impl Step {
    pub(super) fn new(name: &'static str, commands: impl IntoIterator<Item = Command>) -> Self {
        Self {
            name,
            work: Work::Commands(commands.into_iter().collect()),
            beside: Vec::new(),
        }
    }

    pub(super) fn skipped(name: &'static str, why: &str) -> Self {
        Self {
            name,
            work: Work::Skip(why.to_owned()),
            beside: Vec::new(),
        }
    }

    /// Adds commands that run after the others, as many at a time as there are processors.
    pub(super) fn beside(mut self, commands: impl IntoIterator<Item = Command>) -> Self {
        self.beside.extend(commands);
        self
    }

    /// Runs all commands, whether one fails or not.
    pub(super) fn run(self) -> Outcome {
        let start = Instant::now();
        let mut outcome = Outcome::default();
        match self.work {
            Work::Skip(why) => outcome.skipped.push(format!("{}: {why}", self.name)),
            Work::Commands(commands) => {
                println!("== {}", self.name);
                for command in commands {
                    run_one(&command, &mut outcome);
                }
                run_beside(self.beside, &mut outcome);
            }
        }
        outcome.took = start.elapsed();
        outcome
    }
}

/// Runs commands several at a time.
fn run_beside(commands: Vec<Command>, outcome: &mut Outcome) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (queue, outcomes) = (Mutex::new(commands.into_iter()), Mutex::new(outcome));
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(command) = next() {
                    let mut one = Outcome::default();
                    run_one(&command, &mut one);
                    let mut all = outcomes.lock().unwrap_or_else(PoisonError::into_inner);
                    all.passed += one.passed;
                    all.failed.append(&mut one.failed);
                    all.skipped.append(&mut one.skipped);
                }
            });
        }
    });
}

/// A command without tests of its own counts as one.
fn run_one(command: &Command, outcome: &mut Outcome) {
    println!("$ {}", run::shown(command));
    let before = outcome.passed + outcome.failed.len() + outcome.skipped.len();
    match captured(command) {
        Err(error) => outcome.failed.push(format!("{error:#}")),
        Ok((succeeded, text)) => {
            count(&text, outcome);
            let tests = outcome.passed + outcome.failed.len() + outcome.skipped.len() - before;
            match (succeeded, tests) {
                (true, 0) => outcome.passed += 1,
                (true, _) => {}
                (false, _) => {
                    println!("{}", what_failed(&text));
                    outcome.failed.push(run::shown(command));
                }
            }
        }
    }
}

/// Runs a command; what it says is shown only if it fails.
fn captured(command: &Command) -> Result<(bool, String)> {
    let (reader, writer) = std::io::pipe().context("pipe")?;
    // Should we be killed, or it take too long, everything it has started ends too.
    let mut limited = Command::new("setpriv");
    limited.args([
        "--pdeathsig",
        "TERM",
        "timeout",
        "--kill-after=10",
        TIME_LIMIT,
    ]);
    limited.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => limited.env(name, value),
            None => limited.env_remove(name),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        limited.current_dir(folder);
    }
    limited
        .stdin(std::process::Stdio::null())
        .stdout(writer.try_clone().context("pipe")?)
        .stderr(writer);
    let mut child = limited.spawn().with_context(|| run::shown(command))?;
    // Or the pipe would never end.
    drop(limited);
    let mut text = String::new();
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).context("output")? > 0 {
        text += &String::from_utf8_lossy(&line);
        line.clear();
    }
    let status = child.wait().with_context(|| run::shown(command))?;
    if status.code() == Some(124) {
        text += &format!("stopped after {TIME_LIMIT} s\n");
    }
    Ok((status.success(), text))
}

/// The end of what each test program that failed has said; of any other command, the end of all.
fn what_failed(text: &str) -> String {
    let mut programs: Vec<Vec<&str>> = vec![Vec::new()];
    for line in text.lines() {
        // Cargo announces each test program.
        if line.trim_start().starts_with("Running ") {
            programs.push(Vec::new());
        }
        if let Some(program) = programs.last_mut() {
            program.push(line);
        }
    }
    let failed = |program: &Vec<&str>| {
        let is_failure = |line: &&str| {
            line.contains("didn't exit successfully") || line.starts_with("test result: FAILED")
        };
        program.iter().any(is_failure)
    };
    let shown: Vec<String> = programs
        .iter()
        .filter(|program| failed(program))
        .map(|program| last_lines(program, SHOWN_LINES))
        .collect();
    match shown.is_empty() {
        true => last_lines(&text.lines().collect::<Vec<_>>(), SHOWN_LINES),
        false => shown.join("\n"),
    }
}

fn last_lines(lines: &[&str], count: usize) -> String {
    let left_out = lines.len().saturating_sub(count);
    let end = lines.get(left_out..).unwrap_or_default().join("\n");
    if left_out == 0 {
        end
    } else {
        format!("({left_out} lines left out)\n{end}")
    }
}

/// Reads what libtest and our own end-to-end tests print.
fn count(text: &str, outcome: &mut Outcome) {
    let mut passed_but_skipped = 0;
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            // `test result: ok. 3 passed; 0 failed; 1 ignored; …`. With some filtered out it is a test that has
            // started itself anew.
            ["test", "result:", _, passed, "passed;", ..] if !is_part(line) => {
                outcome.passed += passed.parse().unwrap_or(0)
            }
            ["test", name, "...", "FAILED"] if !outcome.failed.iter().any(|one| one == name) => {
                outcome.failed.push(name.to_owned());
            }
            ["test", name, "...", "ignored,", ..] => {
                let why = line.split_once("ignored, ").map_or("", |(_, why)| why);
                outcome.skipped.push(format!("{name}: {why}"));
            }
            ["test", name, "...", "ignored"] => outcome.skipped.push(format!("{name}: ignored")),
            // A test that cannot run says so, and libtest counts it as passed.
            ["skipped:", ..] => {
                outcome
                    .skipped
                    .push(line.trim_start_matches("skipped: ").to_owned());
                passed_but_skipped += 1;
            }
            _ => {}
        }
    }
    outcome.passed = outcome.passed.saturating_sub(passed_but_skipped);
}

/// Whether a result is that of some tests of a program only.
fn is_part(result: &str) -> bool {
    result.contains(" filtered out") && !result.contains(" 0 filtered out")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skipped_test_is_not_counted_as_passed() {
        let mut outcome = Outcome::default();
        let text = "test a ... ok\ntest b ... FAILED\ntest c ... ignored, no disk\nskipped: a: no KVM\n\
            test result: FAILED. 4 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out\n";
        count(text, &mut outcome);
        assert_eq!(outcome.passed, 3);
        assert_eq!(outcome.failed, ["b"]);
        assert_eq!(outcome.skipped, ["c: no disk", "a: no KVM"]);
    }

    #[test]
    fn a_test_that_starts_itself_anew_is_counted_once() {
        let mut outcome = Outcome::default();
        let text = "test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 4 filtered out; finished in 0.75s\n\
            test a ... FAILED\ntest a ... FAILED\n\
            test result: FAILED. 4 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1s\n";
        count(text, &mut outcome);
        assert_eq!((outcome.passed, outcome.failed.len()), (4, 1));
    }

    #[test]
    fn a_failed_program_is_shown_among_many() {
        let text = "     Running tests/a.rs (target/debug/deps/a)\ntest one ... ok\ntest result: ok. 1 passed; 0 failed\n\
            \x20    Running tests/b.rs (target/debug/deps/b)\ntest two has been running for over 60 seconds\n\
            Caused by:\n  process didn't exit successfully: `timeout b` (exit status: 124)\n\
            \x20    Running tests/c.rs (target/debug/deps/c)\ntest three ... ok\n";
        let shown = what_failed(text);
        assert!(shown.contains("test two has been running"), "{shown}");
        assert!(
            !shown.contains("test one") && !shown.contains("test three"),
            "{shown}"
        );
        assert_eq!(
            what_failed("error: no such command\n"),
            "error: no such command"
        );
    }

    #[test]
    fn commands_beside_each_other_are_all_counted() {
        let commands = ["true", "false", "true", "true"].map(Command::new);
        let outcome = Step::new("step", []).beside(commands).run();
        assert_eq!((outcome.passed, outcome.failed.len()), (3, 1));
    }

    #[test]
    fn a_command_without_tests_counts_as_one() {
        let mut outcome = Outcome::default();
        run_one(&Command::new("true"), &mut outcome);
        run_one(&Command::new("false"), &mut outcome);
        assert_eq!((outcome.passed, outcome.failed.len()), (1, 1));
    }
}
