//! `bulkhead version`: the versions of this program and of the monitor.

use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, bail};
use serde::Serialize;

use crate::bounded;
use crate::output::Output;
use crate::program::Programs;

/// Print the versions of this program and of the monitor that runs guests
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Args {}

#[derive(Serialize)]
struct Version {
    bulkhead: &'static str,
    /// The monitor's name and version.
    hypervisor: String,
}

/// How long the monitor may take to print its version.
const LIMIT: Duration = Duration::from_secs(10);

pub(crate) fn run(_: Args, output: Output) -> anyhow::Result<ExitCode> {
    let version = Version {
        bulkhead: env!("CARGO_PKG_VERSION"),
        hypervisor: monitor()?,
    };
    output.show(&version, |version| {
        let Version {
            bulkhead,
            hypervisor,
        } = version;
        format!(
            "Using library: bulkhead {bulkhead}\nUsing API: bulkhead {bulkhead}\nRunning hypervisor: {hypervisor}\n"
        )
    })?;
    Ok(ExitCode::SUCCESS)
}

fn monitor() -> anyhow::Result<String> {
    let program = Programs::find().vmm.path;
    let shown = program.display().to_string();
    let mut command = Command::new(program);
    command.arg("--version");
    let ended = bounded::run(command, LIMIT).with_context(|| format!("cannot run {shown}"))?;
    if !ended.status.success() {
        bail!("{shown} --version: {}", ended.stderr.trim_end());
    }
    Ok(ended.stdout.trim_end().to_owned())
}
