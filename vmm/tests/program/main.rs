//! The program as people start it, on this machine's KVM, with kernels of a few instructions.

#![allow(
    clippy::disallowed_macros,
    reason = "a test reports to whoever runs it"
)]
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod api;
mod backend;
mod bad_input;
mod boot;
mod elf;
mod events;
mod inside;
mod lifecycle;

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;

use tempfile::TempDir;

/// Whether there is a KVM to test with; says so when there is none.
fn kvm_is_usable() -> bool {
    match std::fs::File::open("/dev/kvm") {
        Ok(_) => true,
        Err(error) => {
            println!("skipped: /dev/kvm: {error}");
            false
        }
    }
}

/// A running monitor and the folder it is in. It is killed when dropped.
struct Monitor {
    child: Child,
    folder: Arc<TempDir>,
    ready: UnixDatagram,
}

impl Monitor {
    /// Starts the monitor with a kernel made of `code`. `{}` in an argument is its folder.
    fn start(code: &[u8], arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let kernel = folder.path().join("kernel");
        std::fs::write(&kernel, elf::kernel(code)).unwrap();
        let with_kernel = [
            &["--kernel", "{}/kernel", "--memory", "size=16M"],
            arguments,
        ]
        .concat();
        Self::start_in(folder, &with_kernel)
    }

    /// Starts the monitor in `folder`.
    fn start_in(folder: TempDir, arguments: &[&str]) -> Self {
        let notify = folder.path().join("notify");
        let ready = UnixDatagram::bind(&notify).unwrap();
        let here = folder.path().to_str().unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_bulkhead-vmm"))
            .args(arguments.iter().map(|word| word.replace("{}", here)))
            .env("NOTIFY_SOCKET", &notify)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            child,
            folder: Arc::new(folder),
            ready,
        }
    }

    /// Keeps the folder when the monitor has ended.
    fn keep_folder(&self) -> Arc<TempDir> {
        self.folder.clone()
    }

    fn path(&self, name: impl AsRef<OsStr>) -> PathBuf {
        self.folder.path().join(name.as_ref())
    }

    /// Waits until the monitor says that it is ready.
    fn wait_ready(&self) {
        let mut message = [0; 64];
        let len = self.ready.recv(&mut message).unwrap();
        assert!(message[..len].starts_with(b"READY=1"));
    }

    /// Waits for a line on its standard output.
    fn line(&mut self) -> String {
        let mut line = String::new();
        let output = self.child.stdout.as_mut().unwrap();
        BufReader::with_capacity(1, output)
            .read_line(&mut line)
            .unwrap();
        line.trim_end().to_owned()
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Waits for its end; what it wrote to standard error, and what it left in its folder.
    fn end(mut self) -> (ExitStatus, String, Vec<String>) {
        let mut errors = String::new();
        let mut stderr = self.child.stderr.take().unwrap();
        stderr.read_to_string(&mut errors).unwrap();
        let status = self.child.wait().unwrap();
        let mut left: Vec<_> = std::fs::read_dir(self.folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| !["kernel", "notify"].contains(&name.as_str()))
            .collect();
        left.sort();
        (status, errors, left)
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        // It has ended already when the test went well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
