//! A monitor whose backend goes away, with a standard error that nobody reads, that is closed, and so on.

use std::fs::File;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bulkhead_test_frontend::descriptors::full_pipe;
use serde_json::Value;

use crate::api::ask;
use crate::elf::{self, forever};
use crate::kvm_is_usable;

#[allow(dead_code)] // other tests use the rest
#[path = "../../devices/tests/fake/mod.rs"]
pub(crate) mod fake;

use fake::{Fake, SET_FEATURES, Then};

/// A running monitor, killed when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended already when the test went well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A guest with a disk whose backend is `fake`.
fn start(folder: &Path, fake: &Fake, stderr: Stdio) -> Running {
    let kernel = folder.join("kernel");
    std::fs::write(&kernel, elf::kernel(&forever())).unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_bulkhead-vmm"))
        .arg("--kernel")
        .arg(&kernel)
        .args(["--memory", "size=16M", "--serial", "null", "--disk"])
        .arg(format!("vhost_user=on,socket={}", fake.socket.display()))
        .arg("--api-socket")
        .arg(format!("path={}", folder.join("api").display()))
        .stdin(Stdio::null())
        .stderr(stderr)
        .spawn()
        .unwrap();
    let child = Running(child);
    wait("the API", || {
        UnixStream::connect(folder.join("api")).is_ok()
    });
    // It answers before it knows its backend.
    wait("the guest", || state(folder) == "Running");
    child
}

fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(30), "{what} in vain");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn state(folder: &Path) -> Value {
    ask(&folder.join("api"), "GET", "vm.info", &Value::Null).1["state"].clone()
}

fn end(folder: &Path, mut child: Running) {
    assert_eq!(
        ask(&folder.join("api"), "PUT", "vm.shutdown", &Value::Null).0,
        204
    );
    assert_eq!(child.0.wait().unwrap().code(), Some(0));
}

#[test]
fn a_lost_backend_is_survived_whatever_standard_error_is() {
    if !kvm_is_usable() {
        return;
    }
    let (reader, full) = full_pipe();
    let (gone, broken) = rustix::pipe::pipe().unwrap();
    drop(gone);
    for stderr in [
        Stdio::from(File::options().write(true).open("/dev/full").unwrap()),
        Stdio::from(full),
        Stdio::from(broken),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let fake = Fake::start(folder.path(), 0, Box::new(|_, _| Then::Answer));
        let child = start(folder.path(), &fake, stderr);
        for _ in 0..4 {
            let before = fake.connections();
            fake.cut();
            wait("the return", || fake.connections() > before);
        }
        // The warning is written a second later.
        std::thread::sleep(Duration::from_millis(1500));
        assert_eq!(state(folder.path()), "Running");
        end(folder.path(), child);
    }
    drop(reader);
}

#[test]
fn a_backend_that_keeps_dying_is_worth_few_lines() {
    if !kvm_is_usable() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let fake = Fake::start(folder.path(), 0, Box::new(|_, _| Then::Answer));
    let mut child = start(folder.path(), &fake, Stdio::piped());
    for _ in 0..40 {
        let before = fake.connections();
        fake.cut();
        wait("the return", || fake.connections() > before);
    }
    let mut stderr = child.0.stderr.take().unwrap();
    end(folder.path(), child);
    let mut said = String::new();
    stderr.read_to_string(&mut said).unwrap();
    let lines = said.lines().count();
    assert!((2..=20).contains(&lines), "{lines}: {said}");
    assert!(
        said.contains("the backend is gone; waiting for it"),
        "{said}"
    );
}

#[test]
fn an_end_that_was_asked_for_is_quiet_whoever_goes_first() {
    if !kvm_is_usable() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let fake = Fake::start(folder.path(), 0, Box::new(|_, _| Then::Answer));
    let mut child = start(folder.path(), &fake, Stdio::piped());
    fake.cut();
    std::thread::sleep(Duration::from_millis(100));
    let pid = rustix::process::Pid::from_child(&child.0);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let mut said = String::new();
    child
        .0
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    assert_eq!(
        (child.0.wait().unwrap().code(), said.as_str()),
        (Some(0), "")
    );
}

#[test]
fn a_configuration_is_answered_for_by_what_the_backend_is() {
    if !kvm_is_usable() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let fake = Fake::start(folder.path(), 0, Box::new(|_, _| Then::Answer));
    let kernel = folder.path().join("kernel");
    std::fs::write(&kernel, elf::kernel(&forever())).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_bulkhead-vmm"))
        .arg("--kernel")
        .arg(&kernel)
        .args(["--memory", "size=16M", "--serial", "null", "--disk"])
        .arg(format!(
            "vhost_user=on,readonly=on,socket={}",
            fake.socket.display()
        ))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(error.contains("--read-only"), "{error}");
    assert!(!fake.saw(SET_FEATURES));
}
