//! What a working image-tool can no longer do, and what it never opens.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

use std::fs;
use std::process::{Child, Command};

/// Kills the process when the test ends, however it does.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_working_process_is_confined() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("disk.raw"), vec![1; 1 << 20]).unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_image-tool"))
        .args([
            "convert",
            "-r",
            "1k",
            "-f",
            "raw",
            "-O",
            "qcow2",
            "disk.raw",
            "disk.qcow2",
        ])
        .current_dir(folder.path())
        .spawn()
        .unwrap();
    let mut running = Running(child);
    let status_file = format!("/proc/{}/status", running.0.id());
    let field = |status: &str, name: &str| {
        let line = status
            .lines()
            .find(|line| line.starts_with(name))
            .map(str::to_owned);
        line.and_then(|line| line.split_whitespace().nth(1).map(str::to_owned))
            .unwrap_or_default()
    };
    // It confines itself before its first thread: several threads mean that it is at work.
    let status = loop {
        let status = fs::read_to_string(&status_file).unwrap();
        if field(&status, "Threads:").parse::<u32>().unwrap() > 1 {
            break status;
        }
        assert!(
            running.0.try_wait().unwrap().is_none(),
            "it ended before it was looked at"
        );
        std::thread::yield_now();
    };
    assert_eq!(field(&status, "Seccomp:"), "2", "a seccomp filter");
    assert_eq!(field(&status, "NoNewPrivs:"), "1");
    assert_eq!(
        u64::from_str_radix(&field(&status, "CapEff:"), 16).unwrap(),
        0
    );
    assert_eq!(
        u64::from_str_radix(&field(&status, "CapBnd:"), 16).unwrap(),
        0
    );
}

#[test]
fn info_opens_neither_backing_nor_data_file() {
    let folder = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_image-tool"))
            .args(args)
            .current_dir(folder.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    run(&["create", "-q", "-f", "raw", "base", "1M"]);
    run(&[
        "create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", "overlay",
    ]);
    run(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        "data_file=data",
        "external",
        "1M",
    ]);
    // Pipes without a writer: whoever opened them for reading would wait for ever.
    for name in ["base", "data"] {
        fs::remove_file(folder.path().join(name)).unwrap();
        let made = Command::new("mkfifo")
            .arg(folder.path().join(name))
            .status()
            .unwrap();
        assert!(made.success());
    }
    assert!(run(&["info", "overlay"]).contains("backing file: base\n"));
    assert!(run(&["info", "external"]).contains("data file: data\n"));
}

#[test]
fn completions_and_man_pages_come_from_the_definitions() {
    let folder = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_image-tool"))
            .args(args)
            .output()
            .unwrap()
    };
    let bash = String::from_utf8(run(&["--completions", "bash"]).stdout).unwrap();
    assert!(bash.contains("--backing-format") && bash.contains("snapshot"));
    assert!(!run(&["--completions", "nosuch"]).status.success());
    assert!(
        run(&["--man-pages", &folder.path().to_string_lossy()])
            .status
            .success()
    );
    let page = fs::read_to_string(folder.path().join("image-tool.1")).unwrap();
    assert!(page.contains("Knowing differences"), "{page}");
    assert!(folder.path().join("image-tool-convert.1").exists());
}
