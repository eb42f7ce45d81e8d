//! `cargo xtask demo`: set up, build, and hand over to the demo itself.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::project::Project;
use crate::{run, setup};

/// What the demo and the end-to-end tests run: every program of the workspace.
const BUILD: [&str; 7] = [
    "build",
    "--quiet",
    "--release",
    "--workspace",
    "--exclude",
    "xtask",
    "--bins",
];

pub(crate) fn run(project: &Project) -> Result<ExitCode> {
    setup::packages()?;
    setup::kernel(project)?;
    run::through(&mut build_command(project))?;
    let status = Command::new(project.program("bulkhead-demo"))
        .status()
        .context("bulkhead-demo")?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Builds the programs for release.
pub(crate) fn build_command(project: &Project) -> Command {
    run::cargo(project, &BUILD)
}
