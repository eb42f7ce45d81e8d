//! What a working image-tool can no longer do (asked of the process itself: system calls are put into it with
//! ptrace(2), as a hole in it would), and what it never opens.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

#[path = "../../backends/process/tests/stopped/mod.rs"]
mod stopped;

use std::fs;
use std::process::{Child, Command};

use stopped::{NEEDLESS, Stopped, has_no_privilege, status};

/// Kills the process when the test ends, however it does.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A `convert` that takes its time, and its folder.
fn slow_convert() -> (tempfile::TempDir, Running) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("disk.raw"), vec![1; 1 << 20]).unwrap();
    let line = "convert -r 1k -f raw -O qcow2 disk.raw disk.qcow2";
    let child = Command::new(env!("CARGO_BIN_EXE_image-tool"))
        .args(line.split(' '))
        .current_dir(folder.path())
        .spawn()
        .unwrap();
    (folder, Running(child))
}

/// Waits until it is at work with several threads, before the first of which it confines itself.
fn wait_until_at_work(running: &mut Running) {
    while status(running.0.id(), "Threads:") == "1" {
        assert!(running.0.try_wait().unwrap().is_none(), "it ended too soon");
        std::thread::yield_now();
    }
}

#[test]
fn a_working_process_can_reach_nothing_but_its_files() {
    let (folder, mut running) = slow_convert();
    wait_until_at_work(&mut running);
    // Waiting in a system call.
    let call = format!("/proc/{}/syscall", running.0.id());
    while !fs::read_to_string(&call)
        .unwrap()
        .starts_with(|c: char| c.is_ascii_digit())
    {
        assert!(running.0.try_wait().unwrap().is_none(), "it ended too soon");
        std::thread::yield_now();
    }
    let test = "a_working_process_can_reach_nothing_but_its_files";
    let Some(stopped) = Stopped::attach(running.0.id(), test) else {
        return;
    };
    stopped.is_refused(&NEEDLESS);
    stopped.is_refused(&[
        ("openat2", libc::SYS_openat2, [0; 4]),
        ("creat", libc::SYS_creat, [0; 4]),
        ("mkdir", libc::SYS_mkdir, [0; 4]),
        ("link", libc::SYS_link, [0; 4]),
        ("symlink", libc::SYS_symlink, [0; 4]),
        ("chmod", libc::SYS_chmod, [0; 4]),
        ("mount", libc::SYS_mount, [0; 4]),
        ("io_uring_setup", libc::SYS_io_uring_setup, [0; 4]),
    ]);
    drop(stopped);
    assert!(running.0.try_wait().unwrap().is_none(), "it goes on");
    assert!(!folder.path().join("disk.qcow2").exists());
}

#[test]
fn a_working_process_is_confined() {
    let (_folder, mut running) = slow_convert();
    wait_until_at_work(&mut running);
    has_no_privilege(running.0.id());
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
    // Opening a pipe without a writer for reading would block.
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
    for image in ["overlay", "external"] {
        assert!(run(&["check", image]).contains("No errors were found"));
        assert!(run(&["check", "--output=json", image]).contains("\"check-errors\": 0"));
    }
}
