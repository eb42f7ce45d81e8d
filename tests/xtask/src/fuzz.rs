//! The fuzz targets: their seeds, their build, and the command that runs one of them.

use std::process::Command;

use anyhow::{Context, Result};

use crate::project::Project;
use crate::{run, setup};

/// The workspace of the fuzz targets.
const FOLDER: &str = "tests/fuzz";
/// What fuzz targets are built for.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// How a target runs.
pub(crate) struct Run {
    /// How long, by libFuzzer's own clock.
    pub(crate) seconds: u32,
    /// Where its random numbers begin; 0 for elsewhere each time.
    pub(crate) seed: u32,
}

/// Why the targets cannot be built here, if so.
pub(crate) fn missing() -> Result<Option<&'static str>> {
    let version = run::quiet(Command::new("cargo").args(["+nightly", "--version"]))?;
    Ok(match version.status.success() {
        true => None,
        false => Some("no nightly toolchain: `rustup toolchain install nightly`"),
    })
}

/// Makes the seeds and builds all targets.
pub(crate) fn build(project: &Project) -> [Command; 2] {
    let mut seeds = run::cargo(project, &["run", "--quiet", "--bin", "seeds", "--"]);
    seeds.arg(project.target.join("fuzz/corpus"));
    let mut build = setup::fuzz(project);
    // The libraries have no unsafe code of their own; without a sanitizer far more inputs are tried.
    build.args(["build", "--sanitizer", "none", "--fuzz-dir"]);
    build.arg(project.sources.join(FOLDER));
    build.env("RUSTUP_TOOLCHAIN", "nightly");
    [seeds, build].map(|command| in_folder(project, command))
}

/// Runs the target of this name on its corpus.
pub(crate) fn target(project: &Project, name: &str, run: &Run) -> Command {
    let target = project.target.join("fuzz");
    let artifacts = target.join(format!("artifacts-{name}-"));
    let mut command = Command::new(target.join(TRIPLE).join("release").join(name));
    command
        .arg(format!("-max_total_time={}", run.seconds))
        .arg(format!("-seed={}", run.seed))
        .arg(format!("-artifact_prefix={}", artifacts.display()))
        .args(["-rss_limit_mb=1024", "-timeout=20", "-max_len=32768"])
        .arg(target.join("corpus").join(name));
    in_folder(project, command)
}

/// The names of the targets: one file, one target.
pub(crate) fn targets(project: &Project) -> Result<Vec<String>> {
    let folder = project.sources.join(FOLDER).join("fuzz_targets");
    let entries = std::fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|entry| Some(entry.path().file_stem()?.to_str()?.to_owned()))
        .collect();
    names.sort();
    Ok(names)
}

fn in_folder(project: &Project, mut command: Command) -> Command {
    command
        .current_dir(project.sources.join(FOLDER))
        .env("CARGO_TARGET_DIR", project.target.join("fuzz"));
    command
}
