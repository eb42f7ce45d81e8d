//! The steps of `cargo xtask test`, in order.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::Options;
use super::step::Step;
use crate::project::Project;
use crate::setup;

/// Workspaces besides the main one.
const GUEST: &str = "tests/guest/Cargo.toml";
const FUZZ: &str = "tests/fuzz";

/// Every step, with those that cannot or shall not run here as skipped.
pub(super) fn all(project: &Project, options: &Options) -> Result<Vec<Step>> {
    let (guest, other) = system_tests(project)?;
    let cargo = |arguments: &[&str]| crate::run::cargo(project, arguments);
    let mut deny = setup::deny(project);
    deny.args([
        "--log-level",
        "error",
        "check",
        "--hide-inclusion-graph",
        "licenses",
        "bans",
        "sources",
    ]);
    deny.current_dir(&project.sources);
    let mut steps = vec![
        Step::new(
            "format",
            [
                cargo(&["fmt", "--all", "--check"]),
                cargo(&["fmt", "--manifest-path", GUEST, "--check"]),
            ],
        ),
        Step::new(
            "clippy",
            [
                cargo(&[
                    "clippy",
                    "--workspace",
                    "--all-targets",
                    "--",
                    "-D",
                    "warnings",
                ]),
                guest_clippy(project),
            ],
        ),
        Step::new("deny", [deny]),
        Step::new("build", [crate::demo::build_command(project)]),
        Step::new(
            "unit",
            [tests(cargo(&["test", "--workspace", "--lib", "--bins"]))],
        ),
        Step::new("doc", [tests(cargo(&["test", "--workspace", "--doc"]))]),
        Step::new(
            "integration",
            [
                tests(cargo(&[
                    "test",
                    "--workspace",
                    "--exclude",
                    "bulkhead-tests",
                    "--test",
                    "*",
                ])),
                tests(named(cargo(&["test", "-p", "bulkhead-tests"]), &other)),
            ],
        ),
        Step::new(
            "bare-metal",
            [tests(named(
                cargo(&["test", "-p", "bulkhead-tests"]),
                &guest,
            ))],
        ),
    ];
    steps.push(match options.quick {
        true => Step::skipped("linux", "--quick leaves out the nested bench"),
        false => Step::new("linux", [Command::new(project.program("bulkhead-e2e"))]),
    });
    steps.push(fuzz(project, options)?);
    Ok(steps)
}

/// Clippy for the bare-metal guest, which has a target folder of its own so that neither build undoes the other's.
fn guest_clippy(project: &Project) -> Command {
    let arguments = [
        "clippy",
        "--release",
        "--manifest-path",
        GUEST,
        "--",
        "-D",
        "warnings",
    ];
    let mut command = crate::run::cargo(project, &arguments);
    command.env("CARGO_TARGET_DIR", project.target.join("guest"));
    command
}

/// A test run that goes on after a failure and shows what passing tests print: that is where they say they skip.
fn tests(mut command: Command) -> Command {
    command.args(["--no-fail-fast", "--", "--show-output"]);
    command
}

fn named(mut command: Command, tests: &[String]) -> Command {
    for test in tests {
        command.args(["--test", test]);
    }
    command
}

/// The names of the tests in `tests/tests`: those with the bare-metal guest, and the others.
fn system_tests(project: &Project) -> Result<(Vec<String>, Vec<String>)> {
    let folder = project.sources.join("tests/tests");
    let entries = std::fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
    let paths = entries.flatten().map(|entry| entry.path());
    let rust = paths.filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
    let mut names: Vec<String> = rust
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
        .collect();
    names.sort();
    Ok(names
        .into_iter()
        .partition(|name| name.starts_with("guest_")))
}

/// Each fuzz target for a short while, if what it takes is here.
fn fuzz(project: &Project, options: &Options) -> Result<Step> {
    const NAME: &str = "fuzz";
    let folder = project.sources.join(FUZZ);
    let has = |arguments: &[&str]| {
        crate::run::quiet(Command::new("cargo").args(arguments))
            .is_ok_and(|output| output.status.success())
    };
    if options.quick {
        return Ok(Step::skipped(NAME, "--quick leaves it out"));
    }
    if !folder.join("Cargo.toml").exists() {
        return Ok(Step::skipped(NAME, "there are no fuzz targets"));
    }
    if !has(&["+nightly", "--version"]) {
        return Ok(Step::skipped(
            NAME,
            "no nightly toolchain: `rustup toolchain install nightly`",
        ));
    }
    if !has(&["+nightly", "fuzz", "--version"]) {
        return Ok(Step::skipped(
            NAME,
            "no cargo-fuzz: `cargo install --locked cargo-fuzz`",
        ));
    }
    let targets = fuzz_targets(&folder)?;
    let commands = targets.into_iter().map(|target| {
        let seconds = format!("-max_total_time={}", options.fuzz_seconds);
        let mut command = Command::new("cargo");
        command
            .args(["+nightly", "fuzz", "run", "--fuzz-dir"])
            .arg(&folder)
            .args([&target, "--", &seconds]);
        command
            .current_dir(&folder)
            .env("CARGO_TARGET_DIR", project.target.join("fuzz"));
        command
    });
    Ok(Step::new(NAME, commands))
}

fn fuzz_targets(folder: &Path) -> Result<Vec<String>> {
    let manifest = folder.join("Cargo.toml");
    let text = crate::run::output(
        Command::new("cargo")
            .args(["+nightly", "fuzz", "list", "--fuzz-dir"])
            .arg(folder)
            .current_dir(folder),
    )
    .with_context(|| manifest.display().to_string())?;
    Ok(text.lines().map(str::to_owned).collect())
}
