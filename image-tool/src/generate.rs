//! Shell completions and man pages, generated from the command definitions.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;
use qcow::Format;

use crate::command_line::format_options;
use crate::output;
use crate::verbs::{VERBS, Verb, amend};

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

/// Works around clap_complete 4.6, which encodes the dash of the program's name in two ways, so that a verb's options
/// are never found.
fn with_one_name(script: &str, name: &str) -> String {
    script.replace(&name.replace('-', "__subcmd__"), &name.replace('-', "__"))
}

/// Writes the man page of the program, and one for each verb, into a folder.
pub(crate) fn man_pages(mut command: Command, folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder)
        .with_context(|| format!("Could not create '{}'", folder.display()))?;
    let write = |page: &Man, text: &[u8]| {
        let file = folder.join(page.get_filename());
        std::fs::write(&file, text).with_context(|| format!("Could not write '{}'", file.display()))
    };
    // Gives each verb the name of its page.
    command.build();
    for verb in VERBS {
        if let Some(command) = command.find_subcommand(verb.name) {
            let page = Man::new(command.clone());
            write(&page, &page_of(&page, command, verb)?)?;
        }
    }
    let page = Man::new(command.after_long_help(differences()));
    let mut text = Vec::new();
    page.render(&mut text)?;
    write(&page, &text)
}

/// The man page of a verb.
fn page_of(page: &Man, command: &Command, verb: &Verb) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    page.render_title(&mut text)?;
    page.render_name_section(&mut text)?;
    page.render_synopsis_section(&mut text)?;
    page.render_description_section(&mut text)?;
    page.render_options_section(&mut text)?;
    let takes_format_options = command
        .get_arguments()
        .any(|argument| argument.get_id() == "options");
    if takes_format_options {
        text.extend(format_options_section(verb.name).into_bytes());
    }
    let statuses = verb.manual.status_lines();
    text.extend(format!(".SH \"EXIT STATUS\"\n{}", literal(&statuses)).into_bytes());
    text.extend_from_slice(b".SH EXAMPLES\n");
    for (what, command) in verb.manual.examples {
        text.extend(format!(".PP\n{}:\n{}", escaped(what), literal(command)).into_bytes());
    }
    text.extend_from_slice(b".SH \"SEE ALSO\"\nimage\\-tool(1)\n");
    Ok(text)
}

/// What `-o` takes for qcow2.
fn format_options_section(verb: &str) -> String {
    let table = match verb {
        amend::NAME => format_options::amendable(),
        _ => format_options::creatable(Format::Qcow2),
    };
    let mut text = String::from(
        ".SH \"FORMAT OPTIONS\"\nFor qcow2, -o takes a list of these, separated by commas:\n",
    );
    for spec in table {
        if let Some(description) = format_options::description(spec.name) {
            let name = escaped(spec.name);
            let _ = writeln!(
                text,
                ".TP\n{name}=<{}>\n{}",
                spec.kind.word(),
                escaped(description)
            );
        }
    }
    text
}

/// Lines that a man page shows as they are, indented.
fn literal(lines: &str) -> String {
    format!(".RS\n.nf\n{}\n.fi\n.RE\n", escaped(lines.trim_end()))
}

/// Text without what troff takes for commands.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\e")
        .replace('-', "\\-")
        .replace("\n.", "\n\\&.")
        .replace("\n'", "\n\\&'")
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
    fn every_option_of_a_format_is_described_in_the_man_page() {
        let table = format_options::creatable(Format::Qcow2);
        for spec in table
            .iter()
            .filter(|spec| !spec.name.starts_with("encrypt"))
        {
            assert!(
                format_options::description(spec.name).is_some(),
                "{}",
                spec.name
            );
        }
    }

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
