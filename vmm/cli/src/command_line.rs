//! The command line: its definition, and what is wrong with one.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command, CommandFactory, FromArgMatches};

use crate::output::Output;
use crate::verbs::{self, Verb};

/// Runs virtual machines as separate, confined processes.
///
/// Without a command, on a terminal, this is an interactive shell. Exit status: 0; 1 for an error; 2 when the command
/// line is wrong; `run` and `doctor` have further ones.
#[derive(Debug, clap::Parser)]
#[command(name = "bulkhead", version, disable_help_subcommand = true)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) output: Output,
    #[command(subcommand)]
    pub(crate) verb: Option<Verb>,
}

/// The definition of the command line.
pub(crate) fn command() -> Command {
    const TEMPLATE: &str =
        "{about-with-newline}\n{usage-heading} {usage}\n\nOptions:\n{options}\n\n{after-help}";
    let command = Args::command();
    let verbs = verbs::help::grouped(&command);
    command.help_template(TEMPLATE).after_help(verbs)
}

/// What a command line asks for.
pub(crate) enum Invocation {
    Verb(Verb, Output),
    /// One argument with several commands, after options for all of them.
    Commands(Vec<OsString>, String),
    /// The interactive shell, with options for all commands.
    Shell(Vec<OsString>),
}

/// Parses the command line of this process, which begins with the program's name.
pub(crate) fn parse_own(words: impl IntoIterator<Item = OsString>) -> Result<Invocation, ExitCode> {
    let words: Vec<_> = words.into_iter().collect();
    let options = words.get(1..).unwrap_or_default();
    if let Some((line, options)) = options.split_last()
        && let Some(line) = line.to_str()
        && line.contains([' ', ';', '\n', '\t'])
        && are_options(options)
    {
        return Ok(Invocation::Commands(options.to_vec(), line.to_owned()));
    }
    let options = options.to_vec();
    let args = parse(words)?;
    Ok(match args.verb {
        Some(verb) => Invocation::Verb(verb, args.output),
        None => Invocation::Shell(options),
    })
}

/// Whether these words are options alone, of which each has its value.
fn are_options(words: &[OsString]) -> bool {
    let mut words = words.iter().map(|word| word.to_string_lossy());
    while let Some(word) = words.next() {
        let has_value = match &*word {
            "-o" | "--output" => words.next().is_some(),
            word => word.starts_with('-'),
        };
        if !has_value {
            return false;
        }
    }
    true
}

/// Parses the words of a command line. The error is the status to end with, once the reason is printed.
pub(crate) fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Args, ExitCode> {
    let parsed = command().try_get_matches_from(words);
    let parsed = parsed.and_then(|mut matches| Args::from_arg_matches_mut(&mut matches));
    parsed.map_err(|error| {
        if !error.use_stderr() {
            // If standard output is closed, there is nowhere to report that.
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        bulkhead_process::report(&reason(&error));
        ExitCode::from(bulkhead_process::USAGE)
    })
}

/// What is wrong, in one line that says what to do.
fn reason(error: &clap::Error) -> String {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(value)) => Some(value.clone()),
        Some(ContextValue::Strings(values)) => values.first().cloned(),
        _ => None,
    };
    let (what, near, where_to_look) = match error.kind() {
        ErrorKind::InvalidSubcommand => {
            let name = context(ContextKind::InvalidSubcommand).unwrap_or_default();
            let near = nearest(&name);
            let what = format!("unknown command: '{name}'");
            (what, near, "'bulkhead help' lists the commands")
        }
        ErrorKind::UnknownArgument => (
            bulkhead_process::first_paragraph(&error.to_string()),
            context(ContextKind::SuggestedArg),
            "'bulkhead help COMMAND' lists its options",
        ),
        _ => return bulkhead_process::first_paragraph(&error.to_string()),
    };
    match near {
        Some(near) => format!("{what}: did you mean '{near}'? {where_to_look}"),
        None => format!("{what}: {where_to_look}"),
    }
}

/// The verb whose name is most like this one.
pub(crate) fn nearest(name: &str) -> Option<String> {
    /// Below this, names have little in common.
    const ALIKE: f64 = 0.7;
    let command = Args::command();
    let verbs = command.get_subcommands().filter(|verb| !verb.is_hide_set());
    let alike = verbs.map(|verb| (strsim::jaro_winkler(name, verb.get_name()), verb.get_name()));
    let best = alike.max_by(|(a, _), (b, _)| a.total_cmp(b));
    best.filter(|(alike, _)| *alike > ALIKE)
        .map(|(_, name)| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(words: &str) -> String {
        let words = std::iter::once("bulkhead").chain(words.split(' '));
        reason(&command().try_get_matches_from(words).unwrap_err())
    }

    #[test]
    fn the_definition_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn an_unknown_verb_is_named_with_the_nearest_and_where_all_are() {
        assert_eq!(
            wrong("nodinfo"),
            "unknown command: 'nodinfo': did you mean 'nodeinfo'? 'bulkhead help' lists the commands"
        );
        assert_eq!(
            wrong("qqq"),
            "unknown command: 'qqq': 'bulkhead help' lists the commands"
        );
    }

    #[test]
    fn one_argument_with_several_words_is_commands() {
        let asked = |words: &[&str]| {
            let words = words.iter().map(OsString::from);
            parse_own(std::iter::once("bulkhead".into()).chain(words))
        };
        for (words, count) in [
            (&["pwd; hostname"][..], 0),
            (&["-q", "nodeinfo -o json"], 1),
            (&["-o", "json", "pwd;pwd"], 2),
        ] {
            let Ok(Invocation::Commands(options, line)) = asked(words) else {
                panic!("{words:?}");
            };
            assert_eq!((options.len(), &*line), (count, words[count]));
        }
        assert!(matches!(asked(&["echo", "a b"]), Ok(Invocation::Verb(..))));
        assert!(matches!(asked(&["-q"]), Ok(Invocation::Shell(options)) if options == ["-q"]));
    }

    #[test]
    fn an_unknown_option_is_named_with_the_nearest() {
        assert_eq!(
            wrong("nodeinfo --outpt json"),
            "unexpected argument '--outpt' found: did you mean '--output'? 'bulkhead help COMMAND' lists its options"
        );
    }
}
