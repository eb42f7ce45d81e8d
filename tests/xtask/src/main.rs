//! `xtask`: the developers' one door: `cargo xtask setup`, `check`, `test`, `demo`, `bench`, `manual`,
//! `soak`.
//!
//! It installs, builds, calls and reports; what is tested is in `bulkhead-tests` and in the crates themselves. May
//! touch the target folder, and Debian's packages in `setup` alone. It depends on none of them: it calls what they
//! build.

#![allow(
    clippy::disallowed_macros,
    reason = "a tool for developers prints what it does"
)]
#![forbid(unsafe_code)]

mod bench;
mod check;
mod demo;
mod fuzz;
mod manual;
mod project;
mod run;
mod setup;
mod soak;
mod test;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use project::Project;

/// Sets up, checks, tests, shows and measures Bulkhead.
#[derive(Parser)]
#[command(bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Args {
    /// Without one, all are listed.
    #[command(subcommand)]
    task: Option<Task>,
}

#[derive(Subcommand)]
enum Task {
    /// Install what the other tasks need: Debian packages, Debian's kernel, cargo's tools.
    Setup,
    /// Check format and clippy, and run the unit tests of what changed.
    Check(check::Options),
    /// Run every test there is.
    Test(test::Options),
    /// Run a Linux guest on Bulkhead's processes, and observe every step.
    Demo,
    /// Measure Bulkhead, beside its peers where they are here.
    Bench {
        /// Only these figures; all by default.
        figures: Vec<String>,
    },
    /// Write the manual's pages and the shells' completions, as a package installs them.
    Manual,
    /// Run for hours what the tests run for minutes.
    Soak(soak::Options),
}

fn main() -> ExitCode {
    let Some(task) = Args::parse().task else {
        println!("{}", Args::command().render_help());
        return ExitCode::SUCCESS;
    };
    let result = match (task, Project::find()) {
        (_, Err(error)) => Err(error),
        (Task::Setup, Ok(project)) => setup::everything(&project).map(|()| ExitCode::SUCCESS),
        (Task::Check(options), Ok(project)) => check::run(&project, &options),
        (Task::Demo, Ok(project)) => demo::run(&project),
        (Task::Bench { figures }, Ok(project)) => bench::run(&project, &figures),
        (Task::Manual, Ok(project)) => manual::run(&project),
        (Task::Test(options), Ok(project)) => test::run(&project, &options),
        (Task::Soak(options), Ok(project)) => soak::run(&project, &options),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
