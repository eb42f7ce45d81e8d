//! Shell completions and man pages, made from the command definitions.

use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use clap::Command;
use clap_complete::Shell;
use qcow::Format;

use crate::command_line::format_options;
use crate::output;
use crate::verbs::amend;

/// What the status of most verbs means.
const STATUSES: &str = "Exit status:\n  0  it is done\n  1  it failed";

/// The README holds the one table of knowing differences; the man page shows the same.
const README: &str = include_str!("../README.md");

/// Prints the completions for a shell.
pub(crate) fn completions(mut command: Command, shell: &str) -> Result<()> {
    let shell: Shell = shell.parse().map_err(|_| {
        anyhow!(
            "There are no completions for '{shell}', only for bash, elvish, fish, powershell, zsh"
        )
    })?;
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, &name, &mut script);
    let mut script = String::from_utf8(script).context("completions that are not text")?;
    if shell == Shell::Bash {
        script = with_one_name(&script, &name);
    }
    output::line(script.trim_end());
    Ok(())
}

/// clap_complete 4.6 writes a dash in the program's name in one way where it finds out the verb and in another where it
/// lists the verb's options, which then are never found.
fn with_one_name(script: &str, name: &str) -> String {
    script.replace(&name.replace('-', "__subcmd__"), &name.replace('-', "__"))
}

/// Writes the man page of the program, and one for each verb, into a folder.
pub(crate) fn man_pages(command: Command, folder: &Path) -> Result<()> {
    let command = command
        .mut_subcommands(with_details)
        .after_long_help(differences());
    std::fs::create_dir_all(folder)
        .with_context(|| format!("Could not create '{}'", folder.display()))?;
    clap_mangen::generate_to(command, folder)
        .with_context(|| format!("Could not write man pages to '{}'", folder.display()))
}

/// What a page says beside the options of the verb: what its status means, and what `-o` takes.
fn with_details(verb: Command) -> Command {
    let own = verb.get_after_long_help().map(ToString::to_string);
    let mut text = own.unwrap_or_else(|| STATUSES.to_owned());
    if verb
        .get_arguments()
        .any(|argument| argument.get_id() == "options")
    {
        let mut table = match verb.get_name() {
            amend::NAME => format_options::amendable(),
            _ => format_options::own(Format::Qcow2),
        };
        // Those are known only to be refused.
        table.retain(|spec| !spec.name.starts_with("encrypt"));
        text.push_str("\n\nWhat -o takes for qcow2:\n");
        text.push_str(&format_options::explain(&table));
    }
    // A page keeps no ends of lines within a paragraph.
    verb.after_long_help(text.trim_end().replace('\n', "\n\n"))
}

/// The table of knowing differences as lines of text.
fn differences() -> String {
    let mut text = String::from("Knowing differences from qemu-img 10.0:\n\n");
    let section = README
        .split("## Knowing differences")
        .nth(1)
        .unwrap_or_default();
    let section = section.split("\n## ").next().unwrap_or_default();
    for row in section.lines().filter(|line| line.starts_with('|')).skip(2) {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        if let [_, here, there, why, _] = cells.as_slice() {
            text.push_str(here);
            text.push('.');
            if !there.is_empty() {
                text.push_str(&format!(" qemu-img: {there}."));
            }
            if !why.is_empty() {
                text.push_str(&format!(" Because: {why}."));
            }
            text.push_str("\n\n");
        }
    }
    text.replace('`', "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_difference_of_the_readme_is_in_the_man_page() {
        let rows = README
            .lines()
            .skip_while(|line| !line.starts_with("## Knowing"))
            .skip(1);
        let rows = rows
            .take_while(|line| !line.starts_with("## "))
            .filter(|line| line.starts_with('|'));
        let text = differences();
        let paragraphs = text
            .trim_end()
            .split(
                "

",
            )
            .count()
            - 1;
        assert_eq!(paragraphs, rows.count() - 2, "{text}");
        assert!(text.contains("encrypted images"));
    }
}
