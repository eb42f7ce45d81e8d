//! `bulkhead qemu-monitor-command`: is refused, since there is no QEMU, and says what to use instead.

use std::process::ExitCode;

use anyhow::bail;

use crate::domain::DomainArg;
use crate::output::Output;

/// A command for the monitor of a guest.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    domain: DomainArg,
    /// The command
    #[arg(
        value_name = "COMMAND",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    command: Vec<String>,
}

pub(crate) fn run(args: &Args, _: Output) -> anyhow::Result<ExitCode> {
    let domain = args.domain.find()?;
    let socket = domain.base().join(domain.name()).join("api.sock");
    let word = args.command.iter().find(|word| !word.starts_with("--"));
    let word = word.map(String::as_str).unwrap_or_default();
    let instead = match instead(word) {
        Some(verb) => format!("use '{}'", verb.replace("NAME", domain.name())),
        None => "'bulkhead help domain' lists what guests can be asked for".to_owned(),
    };
    bail!(
        "domain '{}' has no QEMU monitor: {instead}; the API of its own monitor is on {}",
        domain.name(),
        socket.display()
    );
}

/// The verb for a command of QEMU's two monitors, by the first word of it that says what it is about.
fn instead(command: &str) -> Option<&'static str> {
    const INSTEAD: &[(&str, &str)] = &[
        ("query-status", "bulkhead domstate --reason NAME"),
        ("info status", "bulkhead domstate --reason NAME"),
        ("query-blockstats", "bulkhead domstats --block NAME"),
        ("info blockstats", "bulkhead domstats --block NAME"),
        ("query-block", "bulkhead domblklist --details NAME"),
        ("info block", "bulkhead domblklist --details NAME"),
        ("info network", "bulkhead domiflist NAME"),
        ("query-cpus", "bulkhead vcpuinfo NAME"),
        ("info cpus", "bulkhead vcpuinfo NAME"),
        ("query-balloon", "bulkhead dommemstat NAME"),
        ("system_powerdown", "bulkhead shutdown NAME"),
        ("system_reset", "bulkhead reset NAME"),
        ("stop", "bulkhead suspend NAME"),
        ("cont", "bulkhead resume NAME"),
        ("quit", "bulkhead destroy NAME"),
    ];
    let mut known = INSTEAD.iter();
    known
        .find(|(word, _)| command.contains(word))
        .map(|(_, verb)| *verb)
}

#[cfg(test)]
mod tests {
    use super::instead;

    #[test]
    fn a_command_of_either_monitor_has_its_verb() {
        assert_eq!(
            instead(r#"{"execute":"query-status"}"#),
            Some("bulkhead domstate --reason NAME")
        );
        assert_eq!(
            instead("info blockstats"),
            Some("bulkhead domstats --block NAME")
        );
        assert_eq!(instead("system_powerdown"), Some("bulkhead shutdown NAME"));
        assert_eq!(instead("savevm"), None);
    }
}
