//! `bulkhead manual`: the manual's pages, for packages. They are made of the definitions of the command line.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap_mangen::Man;

use super::examples;
use crate::command_line;

/// Write the pages of the manual, bulkhead.1 and one for each command, into a folder
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// An existing folder
    folder: PathBuf,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut command = command_line::command();
    command.build();
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        write(&args.folder, verb)?;
    }
    write(&args.folder, &command)?;
    Ok(ExitCode::SUCCESS)
}

/// Writes the page of a command.
fn write(folder: &Path, command: &clap::Command) -> anyhow::Result<()> {
    let name = command
        .get_display_name()
        .unwrap_or(command.get_name())
        .to_owned();
    let page = Man::new(command.clone()).manual("Bulkhead");
    let mut text = Vec::new();
    page.render(&mut text).context("a page of the manual")?;
    let mut text = String::from_utf8(text).context("a page of the manual")?;
    text.push_str(&examples_section(command.get_name()));
    let path = folder.join(format!("{name}.1"));
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn examples_section(verb: &str) -> String {
    let mut text = String::new();
    for (sentence, command) in examples::of(verb) {
        if text.is_empty() {
            text.push_str(".SH EXAMPLES\n");
        }
        // Writing to a string cannot fail. A line must not begin as a request does.
        let _ = writeln!(
            text,
            ".PP\n{sentence}:\n.PP\n.RS 4\n.nf\n{}\n.fi\n.RE",
            command.replace('\\', "\\e").replace('-', "\\-")
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_with_its_options_and_examples() {
        let folder = tempfile::tempdir().unwrap();
        run(&Args {
            folder: folder.path().to_owned(),
        })
        .unwrap();
        let page = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
        let command = command_line::command();
        for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
            let name = verb.get_name();
            let text = page(&format!("bulkhead-{name}.1"));
            assert!(text.contains(".SH SYNOPSIS"), "{name}");
            assert!(text.contains("quiet"), "{name}");
            assert_eq!(
                text.contains(".SH EXAMPLES"),
                examples::of(name).next().is_some(),
                "{name}"
            );
        }
        assert!(page("bulkhead.1").contains("bulkhead\\-doctor"));
    }
}
