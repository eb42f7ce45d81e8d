//! The steps of `cargo xtask test`, in order.

use std::process::Command;

use anyhow::{Context, Result};

use super::Options;
use super::step::Step;
use crate::fuzz::{self, Run};
use crate::project::Project;
use crate::setup;

/// The bare-metal guest, which is a workspace of its own.
const GUEST: &str = "tests/guest/Cargo.toml";

/// No test program may take longer, in seconds.
const PROGRAM_LIMIT: &str = "900";

/// Random cases of image-tool in a full run.
const RANDOM_CASES: &str = "2000";

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
        Step::new("format", crate::check::formats(project)),
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
                // Optimized, it looks at ten thousand points.
                tests(cargo(&[
                    "test",
                    "--release",
                    "-p",
                    "qcow",
                    "--test",
                    "crash",
                ])),
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
    // Both tools on random images, optimized: two thousand times, or a few in the integration step.
    steps.push(match options.quick {
        true => Step::skipped(
            "random",
            "--quick runs 40 cases only, as part of integration",
        ),
        false => Step::new("random", [random(project)]),
    });
    steps.push(match options.quick {
        true => Step::skipped("linux", "--quick leaves out the nested bench"),
        false => Step::new("linux", [Command::new(project.program("bulkhead-e2e"))]),
    });
    steps.push(fuzz(project, options)?);
    Ok(steps)
}

/// Each fuzz target for a short while, from seeds made on the spot, if the compiler it takes is here.
fn fuzz(project: &Project, options: &Options) -> Result<Step> {
    const NAME: &str = "fuzz";
    if options.quick {
        return Ok(Step::skipped(NAME, "--quick leaves it out"));
    }
    if let Some(why) = fuzz::missing()? {
        return Ok(Step::skipped(NAME, why));
    }
    let run = Run {
        seconds: options.fuzz_seconds,
        seed: options.fuzz_seed,
    };
    let targets = fuzz::targets(project)?;
    let commands = targets.iter().map(|name| fuzz::target(project, name, &run));
    Ok(Step::new(NAME, fuzz::build(project)).beside(commands))
}

/// image-tool against the reference on many random images.
fn random(project: &Project) -> Command {
    let arguments = ["test", "--release", "-p", "image-tool", "--test", "random"];
    let mut command = tests(crate::run::cargo(project, &arguments));
    command.env("IMAGE_TOOL_CASES", RANDOM_CASES);
    command
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
    // A test that hangs ends with its own program, and the others still run.
    command.env(
        "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER",
        format!("timeout --kill-after=10 {PROGRAM_LIMIT}"),
    );
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
    // A file, or a folder with a `main.rs`.
    let rust = paths.filter(|path| {
        path.extension().is_some_and(|extension| extension == "rs") || path.join("main.rs").exists()
    });
    let mut names: Vec<String> = rust
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
        .collect();
    names.sort();
    Ok(names
        .into_iter()
        .partition(|name| name.starts_with("guest_")))
}
