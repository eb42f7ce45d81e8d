//! The commands of README and CONTRIBUTING are what the programs take and print. (That the four commands by hand run
//! a guest is shown end to end, by the `dry_run` scenario, which runs what `--dry-run` prints as it is printed.)

#![allow(
    clippy::disallowed_macros,
    reason = "a test reports to whoever runs it"
)]
#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use bulkhead_tests::guest::{Machine, is_installed, kvm_is_usable};

/// Where the programs are: `target/release`, built before the tests.
fn programs() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| sources().join("target"), PathBuf::from);
    target.join("release")
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

/// The shell lines of a page's first code block after the heading.
fn block(page: &str, heading: &str) -> Vec<String> {
    let text = std::fs::read_to_string(sources().join(page)).unwrap();
    let (_, section) = text
        .split_once(&format!("{heading}\n"))
        .unwrap_or_else(|| panic!("{page} has no '{heading}'"));
    let code = section.split("```").nth(1).unwrap();
    let lines = code.lines().skip(1).filter(|line| !line.trim().is_empty());
    lines.map(str::to_owned).collect()
}

fn shell(line: &str, folder: &Path) -> Output {
    let path = std::env::var("PATH").unwrap();
    Command::new("sh")
        .args(["-c", line])
        .current_dir(folder)
        .env("PATH", format!("{}:{path}", programs().display()))
        .output()
        .unwrap()
}

fn stdout(line: &str, folder: &Path) -> String {
    let output = shell(line, folder);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// What `bulkhead run` does about the network depends on who asks, and on a helper that is there already.
fn as_in_the_readme() -> bool {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: the README's commands are root's");
        return false;
    }
    if Path::new("/run/bulkhead/net-helper.sock").exists() {
        println!("skipped: a network helper runs on this machine already");
        return false;
    }
    true
}

#[test]
fn running_a_guest_takes_the_commands_that_are_shown() {
    if !as_in_the_readme() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let lines = block("README.md", "## Run a guest");
    let create = lines
        .iter()
        .find(|line| line.starts_with("image-tool"))
        .unwrap();
    stdout(create, folder.path());
    let info = stdout("image-tool info disk.qcow2", folder.path());
    assert!(info.contains("virtual size: 10 GiB"), "{info}");

    let run = lines
        .iter()
        .find(|line| line.starts_with("bulkhead run"))
        .unwrap();
    let commands = stdout(&format!("{run} --dry-run"), folder.path());
    let disk = folder.path().canonicalize().unwrap().join("disk.qcow2");
    assert!(commands.contains(disk.to_str().unwrap()), "{commands}");
}

#[test]
fn the_commands_by_hand_are_those_of_the_guest_above() {
    if !as_in_the_readme() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let lines = block("README.md", "## Run a guest");
    let run = lines
        .iter()
        .find(|line| line.starts_with("bulkhead run"))
        .unwrap();
    // As the README says: with its files in /var/lib/bulkhead.
    let run = ["vmlinuz", "initramfs.cpio.gz", "disk.qcow2"]
        .iter()
        .fold(run.clone(), |run, file| {
            run.replace(&format!(" {file}"), &format!(" /var/lib/bulkhead/{file}"))
        });

    let printed = stdout(&format!("{run} --dry-run"), folder.path());

    let shown = block("README.md", "## The same by hand, or as services");
    assert_eq!(printed.lines().collect::<Vec<_>>(), shown);
}

#[test]
fn a_running_guest_answers_the_requests_of_the_api() {
    const TEST: &str = "a_running_guest_answers_the_requests_of_the_api";
    if !kvm_is_usable(TEST) || !is_installed("curl", TEST) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path().display();
    let api = [
        "--api-socket".into(),
        format!("path={here}/api.sock").into(),
    ];
    let (mut guest, mut input) = Machine::start_with_input("test=button", &api);
    guest.expect("button line=");
    writeln!(input, "enable").unwrap();
    guest.expect("button enable");
    let ask = |line: &str| {
        let line = line.replacen("curl", "curl --silent --show-error --fail", 1);
        stdout(
            &line.replace("/run/bulkhead/demo", &here.to_string()),
            folder.path(),
        )
    };

    let lines = block("README.md", "## The API of a running guest");
    let info = lines.iter().find(|line| line.ends_with("vm.info")).unwrap();
    for line in &lines {
        let answer = ask(line);
        let expected = match line.rsplit('/').next().unwrap() {
            "vmm.ping" => "bulkhead-vmm",
            "vm.info" => "Running",
            "vm.pause" => {
                assert!(ask(info).contains("Paused"));
                ""
            }
            "vm.resume" => {
                assert!(ask(info).contains("Running"));
                ""
            }
            "vm.power-button" => {
                writeln!(input, "wait").unwrap();
                assert_eq!(guest.expect("button wait").number("presses"), 1);
                ""
            }
            other => panic!("{other} is tried nowhere"),
        };
        assert!(answer.contains(expected), "{line}: {answer}");
        assert_eq!(answer.is_empty(), expected.is_empty(), "{line}: {answer}");
    }
    assert_eq!(lines.len(), 5);
    writeln!(input, "end").unwrap();
    guest.expect_success();
}

#[test]
fn the_first_commands_are_tasks_there_are() {
    for line in block("README.md", "# Bulkhead") {
        assert_is_task(&line);
    }
}

#[test]
fn contributing_names_tasks_steps_soaks_and_options_there_are() {
    for heading in ["## Build, check, test", "## Measure", "## Fuzz"] {
        let lines = block("CONTRIBUTING.md", heading);
        let tasks: Vec<_> = lines
            .iter()
            .filter(|line| line.starts_with("cargo xtask "))
            .collect();
        assert!(tasks.len() > 1, "{heading}");
        for task in tasks {
            assert_is_task(task);
        }
    }
    let soaks = xtask(&["soak"]);
    for line in block("CONTRIBUTING.md", "## Measure") {
        if let Some(name) = line.strip_prefix("cargo xtask soak ") {
            let name = name.split_whitespace().next().unwrap();
            assert!(name == "#" || first_words(&soaks).contains(&name), "{line}");
        }
    }
}

/// Whether a line's task is one, and its options are that task's.
fn assert_is_task(line: &str) {
    let command = line.split('#').next().unwrap();
    let mut words = command
        .strip_prefix("cargo xtask")
        .unwrap()
        .split_whitespace();
    let Some(task) = words.next() else {
        return;
    };
    let tasks = xtask(&[]);
    assert!(first_words(&tasks).contains(&task), "{line}: {tasks}");
    let help = xtask(&[task, "--help"]);
    for option in words.filter(|word| word.starts_with("--")) {
        assert!(help.contains(option), "{line}: {help}");
    }
}

fn first_words(text: &str) -> Vec<&str> {
    text.lines()
        .filter_map(|line| line.split_whitespace().next())
        .collect()
}

fn xtask(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO"))
        .arg("xtask")
        .args(arguments)
        .current_dir(sources())
        .output()
        .unwrap();
    assert!(output.status.success(), "{arguments:?}");
    String::from_utf8(output.stdout).unwrap()
}
