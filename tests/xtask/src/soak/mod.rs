//! `cargo xtask soak NAME`: what `cargo xtask test` does a slice of, for as long as it takes to be sure.

mod soaks;

use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Result, bail};
use clap::Args;

use crate::project::Project;
use crate::{run, setup};
use soaks::SOAKS;

/// Which soak, and how much of it.
#[derive(Args)]
pub(crate) struct Options {
    /// Which: without a name, all are listed.
    name: Option<String>,
    /// How much: kills, crash points, cases, runs, or seconds for each fuzz target [default: as listed]
    amount: Option<u32>,
}

pub(crate) fn run(project: &Project, options: &Options) -> Result<ExitCode> {
    let Some(name) = &options.name else {
        for soak in &SOAKS {
            println!("{:<12} {:>6} {}", soak.name, soak.amount, soak.what);
        }
        return Ok(ExitCode::SUCCESS);
    };
    let Some(soak) = SOAKS.iter().find(|soak| soak.name == *name) else {
        let names: Vec<_> = SOAKS.iter().map(|soak| soak.name).collect();
        bail!("no soak is called {name}: there are {}", names.join(", "));
    };
    setup::everything(project)?;
    let plan = (soak.plan)(project, options.amount.unwrap_or(soak.amount))?;
    for mut command in plan.first {
        run::through(&mut command)?;
    }
    let mut failed = Vec::new();
    for command in plan.soak {
        let shown = run::shown(&command);
        if !timed(command)? {
            failed.push(shown);
        }
    }
    if failed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    bail!("failed: {}", failed.join("; "))
}

/// Runs a command with its output going through, and prints how long it took; whether it succeeded.
fn timed(mut command: Command) -> Result<bool> {
    let start = Instant::now();
    let result = run::through(&mut command);
    println!("took {:.1} s", start.elapsed().as_secs_f64());
    match result {
        Ok(()) => Ok(true),
        Err(error) => {
            eprintln!("error: {error:#}");
            Ok(false)
        }
    }
}
