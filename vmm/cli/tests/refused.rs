//! A host that refuses parts of the confinement, as containers and old kernels do.
#![allow(clippy::unwrap_used, clippy::panic)] // a test that cannot go on has failed

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};
use std::thread;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter};

const PROCESSES: &str = "warning: no process namespaces: ";
const NAMESPACES: &str = "warning: no mount and network namespaces: ";
const LANDLOCK: &str = "warning: no Landlock: ";

/// The command, where the kernel answers so to one system call.
fn bulkhead(folder: &Path, words: &[&str], refused: Option<(i64, i32)>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead"));
    command.args(words).env("XDG_RUNTIME_DIR", folder);
    output(command, refused)
}

fn output(mut command: Command, refused: Option<(i64, i32)>) -> Output {
    // The filter is a thread's, and its children's.
    let started = thread::spawn(move || {
        if let Some((call, errno)) = refused {
            let filter = SeccompFilter::new(
                [(call, Vec::new())].into(),
                SeccompAction::Allow,
                SeccompAction::Errno(errno.unsigned_abs()),
                TargetArch::x86_64,
            );
            apply_filter(&BpfProgram::try_from(filter.unwrap()).unwrap()).unwrap();
        }
        command.output().unwrap()
    });
    started.join().unwrap()
}

const DRY_RUN: &[&str] = &["run", "--name", "g", "--kernel", "/k", "--dry-run"];

/// The parts that are said to be missing.
fn said(output: &Output) -> Vec<String> {
    assert!(output.status.success(), "{output:?}");
    let lines = String::from_utf8(output.stderr.clone()).unwrap();
    let mut parts: Vec<_> = lines
        .lines()
        .map(|line| {
            let known = [PROCESSES, NAMESPACES, LANDLOCK];
            let part = known.into_iter().find(|part| line.starts_with(part));
            part.unwrap_or_else(|| panic!("{line}")).to_owned()
        })
        .collect();
    parts.sort();
    parts
}

fn with(parts: &[String], more: &[&str]) -> Vec<String> {
    let more = more.iter().map(ToString::to_string);
    let mut all: Vec<_> = parts.iter().cloned().chain(more).collect();
    all.sort();
    all.dedup();
    all
}

#[test]
fn a_dry_run_says_in_one_line_each_what_the_host_refuses() {
    let folder = tempfile::tempdir().unwrap();
    let here = bulkhead(folder.path(), DRY_RUN, None);
    let always = said(&here);
    for (call, errno, missing) in [
        (libc::SYS_unshare, libc::EPERM, &[PROCESSES, NAMESPACES][..]),
        (libc::SYS_unshare, libc::ENOSPC, &[PROCESSES, NAMESPACES]),
        (libc::SYS_mount, libc::EPERM, &[NAMESPACES]),
        (libc::SYS_move_mount, libc::ENOSYS, &[NAMESPACES]),
        (libc::SYS_landlock_create_ruleset, libc::ENOSYS, &[LANDLOCK]),
        (
            libc::SYS_landlock_create_ruleset,
            libc::EOPNOTSUPP,
            &[LANDLOCK],
        ),
    ] {
        let output = bulkhead(folder.path(), DRY_RUN, Some((call, errno)));
        assert_eq!(said(&output), with(&always, missing), "{call} {errno}");
        // The commands are the same, and nothing else is with them.
        assert_eq!(output.stdout, here.stdout);
    }
}

/// The command as an ordinary user types it.
fn by_user(folder: &Path, words: &[&str], more: &[&str]) -> Command {
    const NOBODY: u32 = 65534;
    let own = env!("CARGO_BIN_EXE_bulkhead");
    let is_root = rustix::process::geteuid().is_root();
    let mut command = match is_root {
        false => Command::new(own),
        true => {
            // It may not look into the folder that this was built in.
            let copy = folder.join("bulkhead");
            if !copy.exists() {
                std::fs::copy(own, &copy).unwrap();
            }
            let mode = std::fs::Permissions::from_mode(0o755);
            std::fs::set_permissions(folder, mode).unwrap();
            let mut command = Command::new(copy);
            command.uid(NOBODY).gid(NOBODY).current_dir("/");
            command
        }
    };
    command
        .args(words)
        .args(more)
        .env("XDG_RUNTIME_DIR", folder);
    command
}

#[test]
fn a_plan_is_printed_whatever_this_host_lacks_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("bulkhead/net-helper.sock");
    let missing = format!(
        "warning: bulkhead-net-helper is not running: nothing listens on {}",
        run.display()
    );
    let network = ["--net", "default", "--disk", "/no/disk.raw"];
    let about = |output: &Output, what: &str| {
        let lines = String::from_utf8(output.stderr.clone()).unwrap();
        lines.lines().filter(|line| line.starts_with(what)).count()
    };

    let with_helper = output(by_user(folder.path(), DRY_RUN, &network), None);
    let mut command = by_user(folder.path(), DRY_RUN, &network);
    command.env_remove("XDG_RUNTIME_DIR");
    let without_folder = output(command, None);

    for (output, warning) in [
        (&with_helper, missing.as_str()),
        (&without_folder, "warning: XDG_RUNTIME_DIR is not set"),
        (
            &without_folder,
            "warning: bulkhead-net-helper is not running",
        ),
    ] {
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let plan = String::from_utf8(output.stdout.clone()).unwrap();
        // The folder, the network card, the disk and the monitor.
        assert_eq!(plan.lines().count(), 4, "{plan}");
        assert!(
            plan.contains("--network default --helper-socket /"),
            "{plan}"
        );
        assert_eq!(about(output, warning), 1, "{output:?}");
        assert_eq!(about(output, "error: "), 0, "{output:?}");
    }
}

#[test]
fn a_user_is_told_of_what_only_root_has() {
    let folder = tempfile::tempdir().unwrap();
    let output = output(by_user(folder.path(), DRY_RUN, &[]), None);
    let said = said(&output);
    assert!(said.contains(&PROCESSES.to_owned()), "{said:?}");
}

#[test]
fn a_run_says_all_of_it_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let words = [
        "run",
        "--name",
        "refused",
        "--kernel",
        "/nonexistent/kernel",
    ];
    let output = bulkhead(
        folder.path(),
        &words,
        Some((libc::SYS_unshare, libc::EPERM)),
    );
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let lines = String::from_utf8(output.stderr).unwrap();
    let about: Vec<_> = lines
        .lines()
        .filter(|line| line.contains("confinement"))
        .collect();
    assert_eq!(about.len(), 1, "{lines}");
    assert!(about[0].starts_with("warning: the host does not allow all of the confinement"));
    assert!(
        about[0].contains("no mount and network namespaces"),
        "{lines}"
    );
}
