//! The `main` of every program, and its exit status: 0, 1 after an error, 2 for a wrong command line.

use std::process::ExitCode;

/// The exit status after an error.
pub const ERROR: u8 = 1;
/// The exit status for a wrong command line.
pub const USAGE: u8 = 2;

/// The error of a command line that parses but is not valid.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(String);

/// An error whose exit status is 2: the command line is wrong.
pub fn usage(message: impl Into<String>) -> anyhow::Error {
    UsageError(message.into()).into()
}

/// Parses the command line and runs `body`. An error becomes one line on standard error and the exit status.
pub fn main<A: clap::Parser>(body: impl FnOnce(A) -> anyhow::Result<ExitCode>) -> ExitCode {
    main_with(parse::<A>, body)
}

/// The same for a program with a parser of its own, whose error is the status to end with.
pub fn main_with<A>(
    parse: impl FnOnce(std::env::ArgsOs) -> Result<A, ExitCode>,
    body: impl FnOnce(A) -> anyhow::Result<ExitCode>,
) -> ExitCode {
    crate::stderr::prepare();
    crate::signals::prepare();
    report_panics();
    let outcome = match parse(std::env::args_os()) {
        Ok(args) => body(args),
        Err(status) => return status,
    };
    match outcome {
        Ok(status) => status,
        Err(error) => {
            report(&one_line(&format!("{error:#}")));
            ExitCode::from(status(&error))
        }
    }
}

/// The exit status that [`main`] makes of an error.
pub fn status(error: &anyhow::Error) -> u8 {
    let wrong_usage = error.chain().any(|cause| cause.is::<UsageError>());
    if wrong_usage { USAGE } else { ERROR }
}

/// Parses `args`. `Err` is the status to end with: help and version have been printed (0), or what is wrong with the
/// arguments (2).
pub fn parse<A: clap::Parser>(
    args: impl IntoIterator<Item = std::ffi::OsString>,
) -> Result<A, ExitCode> {
    A::try_parse_from(args).map_err(|error| {
        if !error.use_stderr() {
            // If standard output is closed, there is nowhere to report that.
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        report(&first_paragraph(&error.to_string()));
        ExitCode::from(USAGE)
    })
}

/// Prints the last line of a program. If standard error is closed or nobody reads it, that neither causes a panic nor
/// keeps the program from ending.
pub fn report(message: &str) {
    crate::stderr::write_last_line("error", message);
}

/// Has a panic, which is a bug, print one line that says where it was. Printing it does not wait for a reader either.
fn report_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("a thread");
        report(&format!("this is a bug: in {name}: {panic}"));
    }));
}

/// clap's message without its usage and hints, in one line.
#[must_use]
pub fn first_paragraph(message: &str) -> String {
    let paragraph = message.split("\n\n").next().unwrap_or(message);
    let line = one_line(paragraph);
    line.strip_prefix("error: ").unwrap_or(&line).to_owned()
}

fn one_line(message: &str) -> String {
    message
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Args {
        #[arg(long)]
        kernel: String,
    }

    #[test]
    fn an_argument_that_is_missing_is_named_in_one_line() {
        let error = <Args as clap::Parser>::try_parse_from(["program"]).unwrap_err();
        assert_eq!(
            first_paragraph(&error.to_string()),
            "the following required arguments were not provided: --kernel <KERNEL>"
        );
    }

    #[test]
    fn an_argument_that_is_given_is_parsed() {
        let args = parse::<Args>(["program", "--kernel", "k"].map(Into::into)).unwrap();
        assert_eq!(args.kernel, "k");
    }

    #[test]
    fn a_usage_error_is_found_below_its_context() {
        let error = usage("no --format").context("--disk");
        assert_eq!(status(&error), USAGE);
        assert_eq!(format!("{error:#}"), "--disk: no --format");
        assert_eq!(status(&anyhow::anyhow!("no --format")), ERROR);
    }
}
