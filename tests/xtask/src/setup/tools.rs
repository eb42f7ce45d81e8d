//! Cargo's own tools, in the versions the tests were written for, installed under the target folder.

use std::process::Command;

use anyhow::Result;

use crate::project::Project;
use crate::run;

/// A tool: its package, which is also its program, and its version.
const TOOLS: [(&str, &str); 2] = [("cargo-deny", "0.20.2"), ("cargo-fuzz", "0.13.2")];

/// Installs what is missing.
pub(crate) fn install(project: &Project) -> Result<()> {
    for (name, version) in TOOLS {
        if installed(project, name).is_some_and(|installed| installed == version) {
            continue;
        }
        println!("setup: building {name} {version}");
        // Unoptimized: it builds in a third of the time and does little itself.
        let package = format!("{name}@{version}");
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
        )?;
    }
    Ok(())
}

/// cargo-deny, once installed.
pub(crate) fn deny(project: &Project) -> Command {
    tool(project, "cargo-deny")
}

/// cargo-fuzz, once installed.
pub(crate) fn fuzz(project: &Project) -> Command {
    tool(project, "cargo-fuzz")
}

fn tool(project: &Project, name: &str) -> Command {
    Command::new(project.tools().join("bin").join(name))
}

fn installed(project: &Project, name: &str) -> Option<String> {
    let version = run::output(tool(project, name).arg("--version")).ok()?;
    version
        .trim()
        .strip_prefix(name)
        .map(|version| version.trim().to_owned())
}
