//! `bulkhead help`: the verbs, in groups as virsh has them, or the help of one.

use std::fmt::Write;
use std::process::ExitCode;

use anyhow::bail;
use clap::Command;

use super::examples;
use crate::command_line;
use crate::output::{Output, print};

/// Print the list of commands, or help with one of them or a group of them
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// A command, or the keyword of a group
    command: Option<String>,
}

/// A group of verbs.
struct Group {
    keyword: &'static str,
    title: &'static str,
    /// Its verbs, or with a hyphen at the end what they begin with.
    verbs: &'static [&'static str],
}

/// The groups in their order. A verb that is in none of the others is in the first.
const GROUPS: &[Group] = &[
    Group {
        keyword: "domain",
        title: "Domain Management",
        verbs: &[],
    },
    Group {
        keyword: "monitor",
        title: "Domain Monitoring",
        verbs: &[
            "domblkinfo",
            "domblklist",
            "domblkstat",
            "domifaddr",
            "domiflist",
            "domifstat",
            "dominfo",
            "dommemstat",
            "domstate",
            "domstats",
            "domtime",
            "list",
            "logs",
            "top",
        ],
    },
    Group {
        keyword: "events",
        title: "Domain Events",
        verbs: &["event"],
    },
    Group {
        keyword: "host",
        title: "Host and Hypervisor",
        verbs: &["doctor", "hostname", "nodeinfo", "version"],
    },
    Group {
        keyword: "network",
        title: "Networking",
        verbs: &["net-"],
    },
    Group {
        keyword: "snapshot",
        title: "Snapshot",
        verbs: &["snapshot-"],
    },
    Group {
        keyword: "bulkhead",
        title: "Bulkhead itself",
        verbs: &["cd", "completion", "echo", "exit", "help", "pwd", "quit"],
    },
];

impl Group {
    fn names(&self, verb: &str) -> bool {
        self.verbs.iter().any(|name| match name.ends_with('-') {
            true => verb.starts_with(name),
            false => verb == *name,
        })
    }

    /// The lines of this group; nothing if it has no verb.
    fn text(&self, command: &Command) -> String {
        let verbs = command.get_subcommands().filter(|verb| !verb.is_hide_set());
        let mut own: Vec<_> = verbs
            .filter(|verb| group_of(verb.get_name()).keyword == self.keyword)
            .collect();
        own.sort_by_key(|verb| verb.get_name());
        let mut text = String::new();
        if own.is_empty() {
            return text;
        }
        // Writing to a string cannot fail.
        let _ = writeln!(text, " {} (help keyword '{}'):", self.title, self.keyword);
        for verb in own {
            let about = verb
                .get_about()
                .map(ToString::to_string)
                .unwrap_or_default();
            let _ = writeln!(text, "    {:<30} {about}", verb.get_name());
        }
        text.push('\n');
        text
    }
}

fn group_of(verb: &str) -> &'static Group {
    let found = GROUPS.iter().find(|group| group.names(verb));
    found.unwrap_or(&GROUPS[0])
}

/// All verbs, in groups.
pub(crate) fn grouped(command: &Command) -> String {
    let groups: String = GROUPS.iter().map(|group| group.text(command)).collect();
    format!("Grouped commands:\n\n{groups}")
}

pub(crate) fn run(args: &Args, _: Output) -> anyhow::Result<ExitCode> {
    let mut command = command_line::command();
    let text = match args.command.as_deref() {
        None => grouped(&command),
        Some(name) => match GROUPS.iter().find(|group| group.keyword == name) {
            Some(group) => group.text(&command),
            None => of_verb(&mut command, name)?,
        },
    };
    print(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

fn of_verb(command: &mut Command, name: &str) -> anyhow::Result<String> {
    // Usage lines have the whole name once the command is built.
    command.build();
    let Some(verb) = command.find_subcommand_mut(name) else {
        let near = command_line::nearest(name).map(|near| format!(": did you mean '{near}'?"));
        bail!(
            "command or command group '{name}' doesn't exist{}",
            near.unwrap_or_default()
        );
    };
    let mut text = format!("{}\n", verb.render_long_help());
    for (index, (sentence, example)) in examples::of(name).enumerate() {
        let heading = if index == 0 { "\nExamples:\n" } else { "" };
        let _ = write!(text, "{heading}  {sentence}:\n      {example}\n");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verb_is_in_one_group_and_has_a_sentence() {
        let command = command_line::command();
        let text = grouped(&command);
        let verbs = command.get_subcommands().filter(|verb| !verb.is_hide_set());
        for verb in verbs {
            let name = verb.get_name();
            let lines = text
                .lines()
                .filter(|line| line.starts_with(&format!("    {name} ")));
            assert_eq!(lines.count(), 1, "{name}\n{text}");
            assert!(verb.get_about().is_some(), "{name} has no help");
            assert!(
                GROUPS.iter().filter(|group| group.names(name)).count() <= 1,
                "{name}"
            );
        }
    }

    #[test]
    fn a_group_and_a_verb_have_help_of_their_own() {
        let mut command = command_line::command();
        let host = group_of("nodeinfo");
        assert_eq!(host.keyword, "host");
        assert!(host.text(&command).contains("    doctor "));
        assert!(
            of_verb(&mut command, "nodeinfo")
                .unwrap()
                .contains("Usage: bulkhead nodeinfo")
        );
        let error = of_verb(&mut command, "nodeinf").unwrap_err().to_string();
        assert_eq!(
            error,
            "command or command group 'nodeinf' doesn't exist: did you mean 'nodeinfo'?"
        );
    }
}
