//! `cargo xtask check`: the two-minute loop of who changes something: format, clippy, and the unit tests of what
//! changed.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::Result;
use clap::Args;

use crate::project::Project;
use crate::run;

/// What counts as changed.
#[derive(Args)]
pub(crate) struct Options {
    /// The commit to compare the working tree with [default: where this branch left its upstream, or main]
    #[arg(long, value_name = "COMMIT")]
    since: Option<String>,
}

pub(crate) fn run(project: &Project, options: &Options) -> Result<ExitCode> {
    let since = match &options.since {
        Some(since) => since.clone(),
        None => fork_point(project)?,
    };
    let packages = packages_of(&project.sources, &changed_files(project, &since)?);
    for mut format in formats(project) {
        run::through(&mut format)?;
    }
    run::through(&mut run::cargo(project, &CLIPPY))?;
    if packages.is_empty() {
        println!("no package of the workspace differs from {since}: no unit test to run");
        return Ok(ExitCode::SUCCESS);
    }
    run::through(&mut unit_tests(project, &packages))?;
    Ok(ExitCode::SUCCESS)
}

/// Runs the unit tests of these packages. Cargo takes `--lib` for a mistake where none of them has a library.
fn unit_tests(project: &Project, packages: &BTreeMap<String, bool>) -> Command {
    let mut tests = run::cargo(project, &["test", "--quiet", "--bins"]);
    if packages.values().any(|&has_library| has_library) {
        tests.arg("--lib");
    }
    for package in packages.keys() {
        tests.args(["--package", package]);
    }
    tests
}

const CLIPPY: [&str; 7] = [
    "clippy",
    "--quiet",
    "--workspace",
    "--all-targets",
    "--",
    "-D",
    "warnings",
];

/// Checks the format of the workspace, and of the two that are workspaces of their own.
pub(crate) fn formats(project: &Project) -> [Command; 3] {
    let own = |manifest| run::cargo(project, &["fmt", "--check", "--manifest-path", manifest]);
    [
        run::cargo(project, &["fmt", "--all", "--check"]),
        own("tests/guest/Cargo.toml"),
        own("tests/fuzz/Cargo.toml"),
    ]
}

/// The commit from which this branch has its own changes.
fn fork_point(project: &Project) -> Result<String> {
    for base in ["@{upstream}", "main"] {
        let found = run::quiet(git(project).args(["merge-base", "HEAD", base]))?;
        if found.status.success() {
            return Ok(String::from_utf8_lossy(&found.stdout).trim().to_owned());
        }
    }
    Ok("HEAD".to_owned())
}

/// Files that differ from a commit, the untracked ones included, relative to the workspace.
fn changed_files(project: &Project, since: &str) -> Result<Vec<String>> {
    let tracked = run::output(git(project).args(["diff", "--name-only", "--relative", since]))?;
    let untracked = run::output(git(project).args(["ls-files", "--others", "--exclude-standard"]))?;
    let lines = tracked.lines().chain(untracked.lines());
    Ok(lines.map(str::to_owned).collect())
}

fn git(project: &Project) -> Command {
    let mut command = Command::new("git");
    command.current_dir(&project.sources);
    command
}

/// The packages of the workspace that these files belong to, each with whether it has a library.
fn packages_of(sources: &Path, files: &[String]) -> BTreeMap<String, bool> {
    let packages = files.iter().filter_map(|file| package_of(sources, file));
    packages.collect()
}

/// The package of the nearest manifest above a file. The test guest and the fuzz targets are workspaces of their own,
/// which `cargo xtask test` checks.
fn package_of(sources: &Path, file: &str) -> Option<(String, bool)> {
    let mut folders = Path::new(file).ancestors().skip(1);
    let (folder, manifest) = folders.find_map(|folder| {
        let folder = sources.join(folder);
        let manifest = std::fs::read_to_string(folder.join("Cargo.toml")).ok()?;
        Some((folder, manifest))
    })?;
    let is_own_workspace = manifest.lines().any(|line| line.trim() == "[workspace]");
    let (_, package) = manifest.split_once("[package]")?;
    let (_, name) = package.split_once("name = \"")?;
    let (name, _) = name.split_once('"')?;
    let has_library = folder.join("src/lib.rs").exists();
    (!is_own_workspace).then(|| (name.to_owned(), has_library))
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    fn found(files: &[&str]) -> Result<Vec<String>> {
        let project = Project::find().context("project")?;
        let files: Vec<String> = files.iter().map(|&file| file.to_owned()).collect();
        let packages = packages_of(&project.sources, &files);
        Ok(packages.into_keys().collect())
    }

    #[test]
    fn a_file_belongs_to_the_package_of_the_nearest_manifest() -> Result<()> {
        let files = [
            "vmm/src/main.rs",
            "vmm/kvm/src/lib.rs",
            "backends/qcow/tests/fast/mod.rs",
            "tests/xtask/src/main.rs",
        ];
        let packages = ["bulkhead-kvm", "bulkhead-vmm", "qcow", "xtask"];
        assert_eq!(found(&files)?, packages);
        Ok(())
    }

    #[test]
    fn a_library_is_asked_for_only_where_there_is_one() -> Result<()> {
        let project = Project::find().context("project")?;
        for (files, wanted) in [
            (&["backends/block/src/main.rs"][..], false),
            (&["backends/process/src/lib.rs"], true),
            (
                &["backends/block/src/main.rs", "backends/process/src/lib.rs"],
                true,
            ),
        ] {
            let files: Vec<String> = files.iter().map(|&file| file.to_owned()).collect();
            let packages = packages_of(&project.sources, &files);
            let command = unit_tests(&project, &packages);
            let has_it = command.get_args().any(|word| word == "--lib");
            assert_eq!(has_it, wanted, "{files:?}");
        }
        Ok(())
    }

    #[test]
    fn what_is_in_no_package_of_the_workspace_has_no_unit_tests() -> Result<()> {
        let files = ["README.md", "tests/fuzz/src/lib.rs", "tests/guest/build.rs"];
        assert!(found(&files)?.is_empty());
        Ok(())
    }
}
