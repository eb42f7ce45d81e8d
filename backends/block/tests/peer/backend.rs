//! The process under test: `bulkhead-block`, on an image and with a socket of its own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use bulkhead_test_frontend::program::{said, start, wait};
use tempfile::TempDir;

/// A running `bulkhead-block` and its folder.
pub struct Backend {
    pub child: Child,
    pub socket: PathBuf,
    folder: TempDir,
    strace: bool,
}

/// The program, to add arguments to.
pub fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead-block"));
    command.stdin(Stdio::null()).stderr(Stdio::piped());
    command
}

/// A folder with a raw image of `size` bytes, each sector filled with its own number's low byte.
pub fn raw_image(size: usize) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.raw");
    let content: Vec<u8> = (0..size).map(|at| (at / 512) as u8).collect();
    std::fs::write(&path, content).unwrap();
    (folder, path)
}

impl Backend {
    /// Starts the program on `image` and waits until it is ready.
    pub fn start(image: &Path, format: &str, more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("blk.sock");
        let child = spawn(program(), &socket, (image, format, more), folder.path());
        Self {
            child,
            socket,
            folder,
            strace: false,
        }
    }

    /// The same, but the first call of `syscall` in each thread fails with EIO, and does nothing.
    pub fn start_failing(syscall: &str, image: &Path, format: &str, more: &[&str]) -> Self {
        let injected = format!("inject={syscall}:error=EIO:when=1");
        Self::start_traced(&injected, (image, format, more))
    }

    /// The same under strace(1), which tampers with its system calls as `injected` says. [`child`](Self::child) is
    /// strace.
    pub fn start_traced(injected: &str, (image, format, more): (&Path, &str, &[&str])) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("blk.sock");
        let mut strace = Command::new("strace");
        strace
            .args(["-f", "-qq", "-o", "/dev/null", "-e", injected])
            .arg(env!("CARGO_BIN_EXE_bulkhead-block"))
            .stdin(Stdio::null())
            .stderr(Stdio::piped());
        let child = spawn(strace, &socket, (image, format, more), folder.path());
        Self {
            child,
            socket,
            folder,
            strace: true,
        }
    }

    /// Kills the program (SIGKILL) and starts another in its place.
    pub fn kill_and_restart(&mut self, image: &Path, format: &str, more: &[&str]) {
        self.kill();
        let image = (image, format, more);
        self.child = spawn(program(), &self.socket, image, self.folder.path());
    }

    /// Kills the program; strace ends with it.
    pub fn kill(&mut self) {
        if self.strace {
            let id = self.child.id();
            let children = format!("/proc/{id}/task/{id}/children");
            let children = std::fs::read_to_string(children).unwrap();
            for child in children.split_whitespace() {
                let child = rustix::process::Pid::from_raw(child.parse().unwrap()).unwrap();
                rustix::process::kill_process(child, rustix::process::Signal::KILL).unwrap();
            }
        } else {
            self.child.kill().unwrap();
        }
        self.child.wait().unwrap();
        self.strace = false;
    }

    /// Starts the program on `image` again, with another socket.
    pub fn restart_elsewhere(&mut self, image: &Path, format: &str) {
        self.socket = self.folder.path().join("other.sock");
        self.child = spawn(
            program(),
            &self.socket,
            (image, format, &[]),
            self.folder.path(),
        );
    }

    /// Waits for the end, and returns the status and what was written to standard error.
    pub fn end(mut self) -> (ExitStatus, String) {
        let status = wait(&mut self.child);
        let said = said(&mut self.child);
        assert!(!self.socket.exists(), "the socket is still there");
        (status, said)
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(
    mut program: Command,
    socket: &Path,
    (image, format, more): (&Path, &str, &[&str]),
    folder: &Path,
) -> Child {
    program
        .arg("--socket-path")
        .arg(socket)
        .arg("--blk-file")
        .arg(image)
        .args(["--format", format])
        .args(more);
    start(&mut program, folder)
}
