//! `bulkhead completion`: a shell's script that completes what is typed.
//!
//! The script has no list of anything: it asks this program each time, so that guests' names complete, too.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use clap_complete::engine::{ArgValueCandidates, CompletionCandidate};
use clap_complete::env::{CompleteEnv, Shells};

use crate::command_line;
use crate::output::print;
use crate::runtime;
use crate::store::Store;

/// The variable by which the script asks.
const VARIABLE: &str = "BULKHEAD_COMPLETE";

/// Print a script by which a shell completes commands, options and guests' names
///
/// For this session: source <(bulkhead completion bash). Packages install it for all.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Args {
    /// The shell
    shell: Shell,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

impl Shell {
    fn name(self) -> &'static str {
        match self {
            Self::Bash => "bash",
            Self::Zsh => "zsh",
            Self::Fish => "fish",
        }
    }
}

pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    const NAME: &str = "bulkhead";
    let shells = Shells::builtins();
    let shell = shells
        .completer(args.shell.name())
        .context("no completion for this shell")?;
    let mut script = Vec::new();
    shell.write_registration(VARIABLE, NAME, NAME, NAME, &mut script)?;
    print(&script)?;
    Ok(ExitCode::SUCCESS)
}

/// Answers a script, if one asks, and ends the process then.
pub(crate) fn answer() {
    CompleteEnv::with_factory(|| with_names(command_line::command()))
        .var(VARIABLE)
        .complete();
}

/// The definition of the command line with the names that there are now.
pub(crate) fn with_names(command: clap::Command) -> clap::Command {
    command.mut_subcommands(|verb| {
        verb.mut_args(|argument| {
            let names = argument.get_value_names().unwrap_or_default();
            match names.iter().any(|name| *name == "DOMAIN") {
                true => argument.add(ArgValueCandidates::new(guests)),
                false => argument,
            }
        })
    })
}

/// The names of guests that are defined, and of those that run without a definition. What cannot be read has none.
fn guests() -> Vec<CompletionCandidate> {
    let defined = Store::open().and_then(|store| store.names());
    let mut names = defined.unwrap_or_default();
    names.extend(
        runtime::base()
            .map(|base| running(&base))
            .unwrap_or_default(),
    );
    names.sort();
    names.dedup();
    names.into_iter().map(CompletionCandidate::new).collect()
}

/// The names of guests that have a folder for their sockets.
fn running(base: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(base).into_iter().flatten().flatten();
    let folders = entries.filter(|entry| entry.path().join("lock").is_file());
    folders
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}
