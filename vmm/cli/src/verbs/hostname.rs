//! `bulkhead hostname`: the name of this host.

use std::process::ExitCode;

use serde::Serialize;

use crate::output::Output;

/// Print the name of this host
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Args {}

#[derive(Serialize)]
struct Hostname {
    hostname: String,
}

pub(crate) fn run(_: Args, output: Output) -> anyhow::Result<ExitCode> {
    let name = rustix::system::uname();
    let hostname = name.nodename().to_string_lossy().into_owned();
    output.show(&Hostname { hostname }, |found| {
        format!("{}\n", found.hostname)
    })?;
    Ok(ExitCode::SUCCESS)
}
