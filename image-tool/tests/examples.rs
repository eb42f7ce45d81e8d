//! The commands that help texts, man pages and the README show do what they are said to do.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

const VERBS: [&str; 15] = [
    "amend", "bench", "bitmap", "check", "commit", "compare", "convert", "create", "dd", "info",
    "map", "measure", "rebase", "resize", "snapshot",
];

/// The files that the examples name.
const FILES: &str = "\
set -e
head -c 1M /dev/urandom > disk.raw
image-tool convert -f raw -O qcow2 disk.raw disk.qcow2
image-tool snapshot -c before-upgrade disk.qcow2
image-tool create -q -f qcow2 server.qcow2 1M
image-tool bitmap --add server.qcow2 monday
image-tool convert -f raw -O qcow2 disk.raw base.qcow2
image-tool create -q -f qcow2 -b base.qcow2 -F qcow2 overlay.qcow2
cp base.qcow2 new-base.qcow2";

/// Runs a line of shell where `image-tool` is the tool under test.
fn shell(line: &str, folder: &Path) -> Output {
    let programs = Path::new(env!("CARGO_BIN_EXE_image-tool"))
        .parent()
        .unwrap();
    let path = std::env::var("PATH").unwrap();
    Command::new("sh")
        .args(["-c", line])
        .current_dir(folder)
        .env("PATH", format!("{}:{path}", programs.display()))
        .output()
        .unwrap()
}

fn succeed(line: &str, folder: &Path) -> String {
    let output = shell(line, folder);
    assert!(output.status.success(), "{line}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn folder_with_files() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    succeed(FILES, folder.path());
    folder
}

/// The commands of a verb's help.
fn examples(verb: &str) -> Vec<String> {
    let help = succeed(&format!("image-tool {verb} --help"), Path::new("."));
    let (_, examples) = help.split_once("\nExamples:\n").unwrap();
    let lines = examples.lines().map(str::trim_start);
    let commands = lines.filter(|line| line.starts_with("image-tool "));
    commands.map(str::to_owned).collect()
}

#[test]
fn the_examples_of_every_verb_succeed_one_after_the_other() {
    for verb in VERBS {
        let folder = folder_with_files();
        let examples = examples(verb);
        assert!(!examples.is_empty(), "{verb}");
        for example in examples {
            assert!(
                example.starts_with(&format!("image-tool {verb} ")),
                "{example}"
            );
            if example.contains("renamed.qcow2") {
                fs::rename(
                    folder.path().join("base.qcow2"),
                    folder.path().join("renamed.qcow2"),
                )
                .unwrap();
            }
            succeed(&example, folder.path());
        }
    }
}

#[test]
fn a_man_page_shows_the_same_examples() {
    let folder = tempfile::tempdir().unwrap();
    succeed("image-tool --man-pages .", folder.path());
    for verb in VERBS {
        let page = folder.path().join(format!("image-tool-{verb}.1"));
        let page = fs::read_to_string(page).unwrap().replace("\\-", "-");
        for example in examples(verb) {
            assert!(page.contains(&example), "{verb}: {example}\n{page}");
        }
    }
}

#[test]
fn help_has_the_name_by_which_the_program_was_started() {
    let folder = tempfile::tempdir().unwrap();
    let link = "ln -s \"$(command -v image-tool)\" qemu-img; ./qemu-img";
    let overview = succeed(&format!("{link} --help"), folder.path());
    assert!(
        overview.contains("Usage: qemu-img [OPTIONS] VERB"),
        "{overview}"
    );
    assert!(!overview.contains("image-tool"), "{overview}");
    for verb in VERBS {
        let help = succeed(&format!("./qemu-img {verb} --help"), folder.path());
        assert!(help.contains(&format!("Usage: qemu-img {verb} ")), "{help}");
        assert!(!help.contains("image-tool"), "{help}");
    }
}

#[test]
fn the_first_commands_of_the_readme_succeed() {
    let folder = tempfile::tempdir().unwrap();
    succeed("head -c 1M /dev/urandom > disk.raw", folder.path());
    let readme = include_str!("../README.md");
    let block = readme.split("```").nth(1).unwrap();
    let commands: Vec<_> = block.lines().filter(|line| !line.is_empty()).collect();
    assert!(commands.len() > 3, "{commands:?}");
    for command in commands {
        succeed(command, folder.path());
    }
}
