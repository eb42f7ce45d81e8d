//! The verbs: a file or folder for each, and the list of them.

pub(crate) mod amend;
mod bench;
mod bitmap;
mod check;
mod commit;
mod compare;
mod convert;
mod create;
mod dd;
mod info;
mod map;
mod measure;
mod rebase;
mod resize;
mod snapshot;

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::{Result, anyhow};
use clap::{Arg, Command};
use qcow::Format;

use crate::command_line::getopt::{Matches, Order};
use crate::command_line::manual::Manual;
use crate::command_line::options::{flag, value};
use crate::open::Opened;
use crate::output::errors::describe;
use crate::output::report;

/// One verb.
pub(crate) struct Verb {
    pub(crate) name: &'static str,
    pub(crate) manual: &'static Manual,
    pub(crate) command: fn() -> Command,
    pub(crate) order: Order,
    pub(crate) run: fn(&Matches) -> Result<ExitCode>,
}

/// The verb in the module of the same name.
macro_rules! verb {
    ($module:ident, $order:ident) => {
        Verb {
            name: $module::NAME,
            manual: &$module::MANUAL,
            command: $module::command,
            order: Order::$order,
            run: $module::run,
        }
    };
}

pub(crate) const VERBS: &[Verb] = &[
    verb!(amend, Permute),
    verb!(bench, Permute),
    verb!(bitmap, Permute),
    verb!(check, Permute),
    verb!(commit, Permute),
    verb!(compare, Permute),
    verb!(convert, Permute),
    verb!(create, Permute),
    verb!(dd, Permute),
    verb!(info, Permute),
    verb!(map, Permute),
    verb!(measure, Permute),
    verb!(rebase, Permute),
    verb!(resize, NegativeNumbers),
    verb!(snapshot, Permute),
];

/// The verb of that name.
pub(crate) fn find(name: &OsStr) -> Option<&'static Verb> {
    VERBS.iter().find(|verb| verb.name == name)
}

/// Closes an image that was written, and returns the error if that fails.
pub(crate) fn close(opened: Opened) -> Result<()> {
    let path = opened.image.path().to_owned();
    match opened.into_image() {
        Some(image) => image
            .close()
            .map_err(|error| anyhow!("{}", describe(&error, &path))),
        None => Ok(()),
    }
}

/// The options before the verb.
pub(crate) fn program() -> Command {
    Command::new("image-tool")
        .about("Make, copy, check and change disk images")
        .long_about(
            "image-tool works on raw and qcow2 disk images that no guest uses at the time. Each verb has options \
             of its own and a man page, image-tool-VERB(1).",
        )
        .disable_help_flag(true)
        .disable_version_flag(true)
        .disable_help_subcommand(true)
        .arg(flag("help", 'h', "show the options and verbs"))
        .arg(flag("version", 'V', "show the version"))
        .arg(value(
            "completions",
            None,
            "SHELL",
            "write completions for a shell (bash, elvish, fish, powershell, zsh) to standard output",
        ))
        .arg(value(
            "man-pages",
            None,
            "FOLDER",
            "write the man pages into a folder",
        ))
        .arg(value("trace", 'T', "TRACE", "accepted and ignored"))
        .arg(flag(
            "follow-json-names",
            None,
            "follow backing file names of the form json:{…} that images record, as far as raw, qcow2 and local files go",
        ))
}

/// The program with every verb, for completions, man pages and the overview.
pub(crate) fn whole() -> Command {
    program().subcommands(VERBS.iter().map(|verb| (verb.command)()))
}

/// What `--help` prints without a verb.
pub(crate) fn overview() -> String {
    let program = program();
    let about = program.get_about().map(ToString::to_string);
    let mut text = format!(
        "{}.\n\nUsage: {} [OPTIONS] VERB [ARGUMENTS]\n\nOptions:\n",
        about.unwrap_or_default(),
        report::program()
    );
    for option in program.get_arguments() {
        let _ = writeln!(text, "{}", option_lines(option));
    }
    let _ = writeln!(
        text,
        "\nVerbs ('{} VERB --help' shows options and examples):\n",
        report::program()
    );
    for verb in VERBS {
        let _ = writeln!(text, "  {} - {}", verb.name, verb.manual.about);
    }
    let mut formats = Format::NAMES;
    formats.sort_unstable();
    let _ = write!(
        text,
        "\nSupported image formats:\n\n  {}",
        formats.join(" ")
    );
    text
}

/// An option of the program with its explanation.
fn option_lines(option: &Arg) -> String {
    let short = option.get_short().map(|letter| format!("-{letter}, "));
    let long = option.get_long().unwrap_or_default();
    let value = option.get_value_names().and_then(<[_]>::first);
    let value = value
        .filter(|_| option.get_action().takes_values())
        .map(|name| format!(" {name}"));
    let help = option.get_help().map(ToString::to_string);
    format!(
        "  {}--{long}{}\n     {}",
        short.unwrap_or_default(),
        value.unwrap_or_default(),
        help.unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_definitions_are_sound() {
        super::whole().debug_assert();
    }
}
