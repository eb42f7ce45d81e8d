//! `cargo xtask test`: every test there is, step by step, and what came of each.

mod step;
mod steps;
mod summary;

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;

use crate::project::Project;
use crate::setup;
use summary::Summary;

/// What to test.
#[derive(Args)]
pub(crate) struct Options {
    /// Leave out what needs the nested bench, and fuzzing.
    #[arg(long)]
    quick: bool,
    /// Seconds for each fuzz target.
    #[arg(long, default_value_t = 60)]
    fuzz_seconds: u32,
    /// Where the random numbers of the fuzz targets begin; 0 for elsewhere each time.
    #[arg(long, default_value_t = 1)]
    fuzz_seed: u32,
    /// Only these steps; all by default.
    steps: Vec<String>,
}

pub(crate) fn run(project: &Project, options: &Options) -> Result<ExitCode> {
    let steps = steps::all(project, options)?;
    for name in &options.steps {
        if !steps.iter().any(|step| step.name == name) {
            let names: Vec<_> = steps.iter().map(|step| step.name).collect();
            bail!("no step is called {name}: there are {}", names.join(", "));
        }
    }
    setup::everything(project)?;
    let mut summary = Summary::default();
    for step in steps {
        if options.steps.is_empty() || options.steps.iter().any(|name| name == step.name) {
            summary.add(step.name, &step.run());
        }
    }
    Ok(summary.print())
}
