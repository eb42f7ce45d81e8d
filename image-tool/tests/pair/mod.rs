//! Two tools side by side: image-tool under the name `qemu-img`, and the real qemu-img. The same arguments go to
//! both, and what they print, how they end and what they leave behind is compared.

#![allow(clippy::disallowed_macros, reason = "a test prints why it was skipped")]
#![allow(dead_code, unreachable_pub, reason = "each test uses a part of it")]
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

pub mod images;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// The tool under test.
pub const TOOL: &str = env!("CARGO_BIN_EXE_image-tool");

/// Runs a line of shell in a folder, where `$T` is the tool.
pub fn shell(folder: &Path, line: &str) -> Outcome {
    run(Command::new("sh").args(["-c", line]), folder)
}

/// Runs a command in a folder, with the tool in `$T`.
pub fn run(command: &mut Command, folder: &Path) -> Outcome {
    let output = command.current_dir(folder).env("T", TOOL).output();
    output.unwrap().into()
}

/// What a command did.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    pub status: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Outcome {
    fn from(output: Output) -> Self {
        Self {
            status: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// A scratch folder with both tools at hand.
pub struct Pair {
    root: TempDir,
}

/// Whether the reference is installed. Without it these tests have nothing to compare with.
pub fn reference_is_there() -> bool {
    let there = ["qemu-img", "qemu-io"]
        .iter()
        .all(|tool| Command::new(tool).arg("--version").output().is_ok());
    if !there {
        eprintln!("skipped: qemu-img and qemu-io (package qemu-utils) are not installed");
    }
    there
}

impl Pair {
    pub fn new() -> Self {
        Self::within(&std::env::temp_dir())
    }

    /// The same in a folder below this one.
    pub fn within(folder: &Path) -> Self {
        let root = tempfile::tempdir_in(folder).unwrap();
        fs::create_dir(root.path().join("bin")).unwrap();
        symlink(
            env!("CARGO_BIN_EXE_image-tool"),
            root.path().join("bin/qemu-img"),
        )
        .unwrap();
        for side in ["ours", "theirs"] {
            fs::create_dir(root.path().join(side)).unwrap();
        }
        Self { root }
    }

    /// The folder in which image-tool works.
    pub fn ours(&self) -> PathBuf {
        self.root.path().join("ours")
    }

    /// The folder in which qemu-img works.
    pub fn theirs(&self) -> PathBuf {
        self.root.path().join("theirs")
    }

    /// Runs image-tool in its folder.
    pub fn run_ours(&self, args: &[&str]) -> Outcome {
        self.run(&self.root.path().join("bin/qemu-img"), &self.ours(), args)
    }

    /// Runs image-tool in any folder.
    pub fn run_ours_in(&self, folder: &Path, args: &[&str]) -> Outcome {
        self.run(&self.root.path().join("bin/qemu-img"), folder, args)
    }

    /// Runs qemu-img in its folder. Its `amend` sometimes waits for ever for what it has done already: it is then begun
    /// again, from what there was.
    pub fn run_theirs(&self, args: &[&str]) -> Outcome {
        let qemu = Path::new("qemu-img");
        if args.first() == Some(&"amend") {
            let before = self.root.path().join("before");
            copy(&self.theirs(), &before);
            let outcome = self.run_for(60, qemu, &self.theirs(), args);
            // What timeout(1) says of what it stopped.
            if !matches!(outcome.status, Some(124 | 137)) {
                return outcome;
            }
            eprintln!("qemu-img {args:?} does not end, and is begun again");
            copy(&before, &self.theirs());
        }
        self.run(qemu, &self.theirs(), args)
    }

    fn run(&self, program: &Path, folder: &Path, args: &[&str]) -> Outcome {
        // Some of what the reference does syncs thousands of times.
        self.run_for(300, program, folder, args)
    }

    fn run_for(&self, seconds: u32, program: &Path, folder: &Path, args: &[&str]) -> Outcome {
        let output = Command::new("timeout")
            .args(["--kill-after=1", &seconds.to_string()])
            .arg(program)
            .args(args)
            .current_dir(folder)
            .env("LC_ALL", "C")
            .output()
            .unwrap();
        let mut outcome = Outcome::from(output);
        // The reference is found through PATH and image-tool by its path; both are `qemu-img`.
        let path = self.root.path().join("bin/qemu-img");
        outcome.stderr = outcome.stderr.replace(&*path.to_string_lossy(), "qemu-img");
        outcome
    }

    /// Prepares both folders alike: runs the real tools once, and copies the result.
    pub fn prepare(&self, commands: &[&[&str]]) {
        for command in commands {
            must("prepare", &self.theirs(), command);
        }
        self.copy_theirs();
    }

    /// As [`Self::prepare`], by lines of a shell.
    pub fn make(&self, lines: &[&str]) {
        must(
            "make",
            &self.theirs(),
            &["sh", "-e", "-c", &lines.join("\n")],
        );
        self.copy_theirs();
    }

    /// A pair prepared by commands whose words have no spaces.
    pub fn prepared(commands: &[&str]) -> Self {
        let pair = Self::new();
        let commands: Vec<Vec<&str>> = commands
            .iter()
            .map(|line| line.split(' ').collect())
            .collect();
        pair.prepare(&commands.iter().map(Vec::as_slice).collect::<Vec<_>>());
        pair
    }

    /// Makes image-tool's folder a copy of qemu-img's.
    pub fn copy_theirs(&self) {
        copy(&self.theirs(), &self.ours());
    }

    /// Runs both with the same arguments on the same folder, and asserts that they do the same.
    #[track_caller]
    pub fn same_reading(&self, args: &[&str]) -> Outcome {
        let (ours, theirs) = self.read_both(args);
        assert_eq!(
            ours, theirs,
            "image-tool (left) and qemu-img (right) {args:?}"
        );
        ours
    }

    /// Runs both with the same arguments on the same folder.
    pub fn read_both(&self, args: &[&str]) -> (Outcome, Outcome) {
        let ours = self.run(&self.root.path().join("bin/qemu-img"), &self.theirs(), args);
        (ours, self.run(Path::new("qemu-img"), &self.theirs(), args))
    }

    /// Runs both with the same arguments in one folder.
    pub fn both_in(&self, folder: &Path, args: &[&str]) -> (Outcome, Outcome) {
        let ours = self.run(&self.root.path().join("bin/qemu-img"), folder, args);
        (ours, self.run(Path::new("qemu-img"), folder, args))
    }

    /// Runs both with the same arguments, each in its own folder, and asserts that they say the same.
    #[track_caller]
    pub fn same(&self, args: &[&str]) -> Outcome {
        let (ours, theirs) = self.run_both(args);
        assert_eq!(
            ours, theirs,
            "image-tool (left) and qemu-img (right) {args:?}"
        );
        ours
    }

    /// Runs both with the same arguments, each in its own folder.
    pub fn run_both(&self, args: &[&str]) -> (Outcome, Outcome) {
        (self.run_ours(args), self.run_theirs(args))
    }

    /// Asserts that both wrote an image of this name with the same facts and content, and that both tools find it
    /// consistent.
    #[track_caller]
    pub fn same_image(&self, name: &str, format: &str) {
        let facts = |side: &Path| {
            let info = must(
                "info",
                side,
                &["qemu-img", "info", "-f", format, "--output=json", name],
            );
            without_host_sizes(&info)
        };
        assert_eq!(facts(&self.ours()), facts(&self.theirs()), "info of {name}");
        let ours = self.ours().join(name);
        let theirs = self.theirs().join(name);
        let compared = must(
            "compare",
            &self.ours(),
            &[
                "qemu-img",
                "compare",
                "-f",
                format,
                "-F",
                format,
                &ours.to_string_lossy(),
                &theirs.to_string_lossy(),
            ],
        );
        assert_eq!(compared, "Images are identical.\n");
        if format == "qcow2" {
            must(
                "qemu-img check",
                &self.ours(),
                &["qemu-img", "check", "-q", name],
            );
            let checked = self.run_ours(&["check", name]);
            assert_eq!(
                checked.status,
                Some(0),
                "image-tool check {name}: {checked:?}"
            );
        }
    }
}

/// The lines of `info` that do not depend on how a file lies on the host.
pub fn without_host_sizes(info: &str) -> String {
    let mut in_file = false;
    info.lines()
        .filter(|line| {
            in_file = in_file || line.contains("\"info\": {");
            let host =
                line.contains("\"actual-size\"") || (in_file && line.contains("\"virtual-size\""));
            if in_file && line.trim_start().starts_with("\"dirty-flag\"") {
                in_file = false;
            }
            !host && !line.contains("\"date-")
        })
        .collect::<Vec<_>>()
        .join("\n")
}

/// Runs a real tool that must succeed, and returns what it printed.
#[track_caller]
pub fn must<S: AsRef<OsStr> + std::fmt::Debug>(what: &str, folder: &Path, command: &[S]) -> String {
    let output = Command::new(&command[0])
        .args(&command[1..])
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{what}: {command:?} ended with {:?}: {}{}",
        output.status.code(),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Makes one folder a copy of another.
fn copy(from: &Path, to: &Path) {
    if to.exists() {
        fs::remove_dir_all(to).unwrap();
    }
    let status = Command::new("cp")
        .arg("-a")
        .arg("--sparse=auto")
        .args([from, to])
        .status();
    assert!(status.unwrap().success());
}
