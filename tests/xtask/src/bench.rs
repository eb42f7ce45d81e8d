//! `cargo xtask bench`: set up, build, and hand over to what measures.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::project::Project;
use crate::{demo, run, setup};

pub(crate) fn run(project: &Project, figures: &[String]) -> Result<ExitCode> {
    setup::packages()?;
    setup::kernel(project)?;
    run::through(&mut demo::build_command(project))?;
    let mut bench = Command::new(project.program("bulkhead-bench"));
    let status = bench.args(figures).status().context("bulkhead-bench")?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
