//! The verbs that press a guest's buttons: `shutdown`, `reboot`, `reset`, `suspend` and `resume`.

use std::process::ExitCode;

use anyhow::Context;

use crate::domain::DomainArg;
use crate::output::Output;
use crate::supervise::control::Request;

/// A guest.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    domain: DomainArg,
}

/// A guest that is asked to shut down.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ModeArgs {
    #[command(flatten)]
    domain: DomainArg,
    /// How the guest is asked: acpi presses its power button
    #[arg(long, default_value = "acpi", value_parser = ["acpi"])]
    mode: String,
}

pub(crate) fn shutdown(args: &ModeArgs, output: Output) -> anyhow::Result<ExitCode> {
    let words = ("shutdown", "is being shutdown");
    press(&args.domain, &Request::Shutdown, words, output)
}

pub(crate) fn reboot(args: &ModeArgs, output: Output) -> anyhow::Result<ExitCode> {
    let words = ("reboot", "is being rebooted");
    press(&args.domain, &Request::Reboot, words, output)
}

pub(crate) fn reset(args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    press(
        &args.domain,
        &Request::Reset,
        ("reset", "was reset"),
        output,
    )
}

pub(crate) fn suspend(args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    let words = ("suspend", "suspended");
    press(&args.domain, &Request::Suspend, words, output)
}

pub(crate) fn resume(args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    let words = ("resume", "resumed");
    press(&args.domain, &Request::Resume, words, output)
}

fn press(
    domain: &DomainArg,
    request: &Request,
    (verb, done): (&str, &str),
    output: Output,
) -> anyhow::Result<ExitCode> {
    let domain = domain.find()?;
    let name = domain.name();
    domain
        .request(request)
        .with_context(|| format!("Failed to {verb} domain '{name}'"))?;
    output.success(&format!("Domain '{name}' {done}"))?;
    Ok(ExitCode::SUCCESS)
}
