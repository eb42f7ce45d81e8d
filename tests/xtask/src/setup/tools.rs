//! Cargo's own tools, in the version the tests were written for, installed under the target folder.

use std::process::Command;

use anyhow::Result;

use crate::project::Project;
use crate::run;

const CARGO_DENY: &str = "0.20.2";

/// Installs what is missing.
pub(crate) fn install(project: &Project) -> Result<()> {
    if deny_version(project).is_some_and(|version| version == CARGO_DENY) {
        return Ok(());
    }
    println!("setup: building cargo-deny {CARGO_DENY}");
    // Unoptimized: it builds in a third of the time and runs for a second.
    let package = format!("cargo-deny@{CARGO_DENY}");
    let mut install = run::cargo(
        project,
        &[
            "install", "--quiet", "--debug", "--locked", &package, "--root",
        ],
    );
    run::through(
        install
            .arg(project.tools())
            .env("CARGO_TARGET_DIR", project.tools().join("build")),
    )
}

/// cargo-deny, once installed.
pub(crate) fn deny(project: &Project) -> Command {
    Command::new(project.tools().join("bin/cargo-deny"))
}

fn deny_version(project: &Project) -> Option<String> {
    let version = run::output(deny(project).arg("--version")).ok()?;
    version
        .trim()
        .strip_prefix("cargo-deny ")
        .map(str::to_owned)
}
