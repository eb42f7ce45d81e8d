//! `bulkhead-block` and `bulkhead-net`, ready when they say so.

use std::ffi::{OsStr, OsString};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use super::image::Image;
use super::program::{PATIENCE, Program};
use crate::workplace::Workplace;

/// A backend that listens on its socket.
pub struct Backend {
    program: Program,
    command: Vec<OsString>,
    socket: PathBuf,
    /// The file into which a program writes its process id once it listens, if it cannot notify.
    pid_file: Option<PathBuf>,
}

impl Backend {
    /// `bulkhead-block` on an image, with its socket `folder/NAME.sock`.
    pub fn block(folder: &Path, name: &str, image: &Image, more: &[&str]) -> Self {
        let mut words: Vec<&OsStr> = ["--blk-file".as_ref(), image.path().as_ref()].to_vec();
        words.extend(["--format", image.format().name()].map(OsStr::new));
        words.extend(more.iter().map(OsStr::new));
        Self::start(
            "bulkhead-block",
            folder.join(format!("{name}.sock")),
            &words,
        )
    }

    /// `bulkhead-net`, with its socket `folder/NAME.sock`.
    pub fn net(folder: &Path, name: &str, words: &[&str]) -> Self {
        let words: Vec<&OsStr> = words.iter().map(OsStr::new).collect();
        Self::start("bulkhead-net", folder.join(format!("{name}.sock")), &words)
    }

    /// QEMU's storage daemon on an image, with its socket `folder/NAME.sock`.
    pub fn qemu(folder: &Path, name: &str, image: &Image) -> Self {
        let socket = folder.join(format!("{name}.sock"));
        let pid_file = folder.join(format!("{name}.pid"));
        let (format, file) = (image.format().name(), image.path().display());
        let command: Vec<OsString> = [
            "qemu-storage-daemon".to_owned(),
            "--blockdev".to_owned(),
            format!("{format},node-name=disk,file.driver=file,file.filename={file}"),
            "--export".to_owned(),
            format!(
                "vhost-user-blk,id=disk,node-name=disk,writable=on,addr.type=unix,addr.path={}",
                socket.display()
            ),
            "--pidfile".to_owned(),
            pid_file.display().to_string(),
        ]
        .map(OsString::from)
        .to_vec();
        Self {
            program: Self::run_qemu(&command, &pid_file),
            command,
            socket,
            pid_file: Some(pid_file),
        }
    }

    /// Runs the command and waits until it has written its number, as it does when it listens.
    fn run_qemu(words: &[OsString], pid_file: &Path) -> Program {
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        let program = Program::start(command);
        let end = std::time::Instant::now() + PATIENCE;
        while !pid_file.exists() {
            let in_time = std::time::Instant::now() < end;
            assert!(in_time, "{words:?} did not become ready");
            std::thread::yield_now();
        }
        program
    }

    fn start(program: &str, socket: PathBuf, words: &[&OsStr]) -> Self {
        let program = Workplace::find().unwrap().program(program).unwrap();
        let mut command = vec![
            program.into(),
            "--socket-path".into(),
            socket.clone().into(),
        ];
        command.extend(words.iter().map(Into::into));
        Self {
            program: Self::run(&command),
            command,
            socket,
            pid_file: None,
        }
    }

    /// Runs the command and waits for `READY=1`, as a service manager does.
    fn run(words: &[OsString]) -> Program {
        let folder = tempfile::tempdir().unwrap();
        let address = folder.path().join("notify");
        let notify = UnixDatagram::bind(&address).unwrap();
        notify.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).env("NOTIFY_SOCKET", &address);
        let mut program = Program::start(command);
        // A datagram socket does not show that its sender has ended, so the end of the process is polled, too.
        let pid = rustix::process::Pid::from_raw(program.id().cast_signed()).unwrap();
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
        let mut fds = [
            rustix::event::PollFd::new(&notify, rustix::event::PollFlags::IN),
            rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN),
        ];
        let timeout = rustix::event::Timespec::try_from(PATIENCE).unwrap();
        rustix::event::poll(&mut fds, Some(&timeout)).unwrap();
        if fds[0].revents().is_empty() {
            program.kill();
            panic!("{words:?} did not become ready");
        }
        let mut message = [0; 256];
        let length = notify.recv(&mut message).unwrap();
        let message = String::from_utf8_lossy(&message[..length]).into_owned();
        assert!(message.lines().any(|line| line == "READY=1"), "{message}");
        program
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.program.id()
    }

    /// The socket it listens on.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Kills it at once (`SIGKILL`) and starts it anew with the same arguments.
    pub fn kill_and_restart(&mut self) {
        self.program.kill();
        self.program = match &self.pid_file {
            None => Self::run(&self.command),
            Some(pid_file) => {
                // It would refuse the file and the socket of the killed one.
                let _ = std::fs::remove_file(pid_file);
                let _ = std::fs::remove_file(&self.socket);
                Self::run_qemu(&self.command, pid_file)
            }
        };
    }

    /// Kills it at once (`SIGKILL`).
    pub fn kill(mut self) {
        self.program.kill();
    }

    /// Waits until it ends by itself.
    pub fn wait(mut self) -> (ExitStatus, String) {
        self.program.wait()
    }
}
