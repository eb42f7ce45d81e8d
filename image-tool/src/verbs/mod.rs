//! The verbs: one file each, and the one list of them.

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
use clap::Command;

use crate::command_line::getopt::{Matches, Order};
use crate::command_line::options::{flag, value};
use crate::open::Opened;
use crate::output::reason::reason;

/// One verb.
pub(crate) struct Verb {
    pub(crate) name: &'static str,
    pub(crate) command: fn() -> Command,
    pub(crate) order: Order,
    pub(crate) run: fn(&Matches) -> Result<ExitCode>,
}

/// A verb whose file is named as it is.
macro_rules! verb {
    ($module:ident, $order:ident) => {
        Verb {
            name: $module::NAME,
            command: $module::command,
            order: Order::$order,
            run: $module::run,
        }
    };
}

const VERBS: &[Verb] = &[
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

/// Closes an image that was written, and says what was wrong with that.
pub(crate) fn close(opened: Opened) -> Result<()> {
    let path = opened.image.path().to_owned();
    match opened.into_image() {
        Some(image) => image
            .close()
            .map_err(|error| anyhow!("{}", reason(&error, &path))),
        None => Ok(()),
    }
}

/// The program itself: what stands before the verb.
pub(crate) fn program() -> Command {
    Command::new("image-tool")
        .about("Disk images: create, convert, inspect, check")
        .disable_help_flag(true)
        .disable_version_flag(true)
        .disable_help_subcommand(true)
        .arg(flag("help", 'h', "print this help and exit"))
        .arg(flag("version", 'V', "print the version and exit"))
        .arg(value(
            "completions",
            None,
            "SHELL",
            "print completions for this shell and exit",
        ))
        .arg(value(
            "man-pages",
            None,
            "FOLDER",
            "write the man pages into this folder and exit",
        ))
        .arg(value("trace", 'T', "TRACE", "accepted and ignored"))
        .arg(flag(
            "follow-json-names",
            None,
            "follow names of the form json:{…} that an image records for its backing file, as far as raw, qcow2 and local files go",
        ))
}

/// The program with every verb, for completions, man pages and the overview.
pub(crate) fn whole() -> Command {
    program().subcommands(VERBS.iter().map(|verb| (verb.command)()))
}

/// What `--help` prints without a verb.
pub(crate) fn overview() -> String {
    let mut text = String::from(
        "Disk image utility.  Usage:\n\n  image-tool [standard options] COMMAND [--help | command options]\n\n\
         Standard options:\n  -h, --help\n     display this help and exit\n  -V, --version\n     \
         display version info and exit\n\nRecognized commands (run image-tool COMMAND --help for command-specific help):\n\n",
    );
    for command in whole().get_subcommands() {
        let about = command
            .get_about()
            .map(ToString::to_string)
            .unwrap_or_default();
        let _ = writeln!(text, "  {} - {about}", command.get_name());
    }
    text.push_str("\nSupported image formats:\n\n  qcow2 raw");
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_definitions_are_sound() {
        super::whole().debug_assert();
    }
}
