//! Programs under test as child processes: their lines, their end, and nothing left when a test fails.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// How long a test waits for anything.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// A running program. It is killed when this is dropped.
pub struct Program {
    name: String,
    child: Child,
    lines: Receiver<String>,
    errors: Option<JoinHandle<String>>,
}

impl Program {
    /// Starts a program, with nothing on its standard input.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(mut command: Command) -> Self {
        command.stdin(Stdio::null());
        Self::spawn(command)
    }

    /// Starts a program, and returns what writes to its standard input.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start_with_input(mut command: Command) -> (Self, ChildStdin) {
        command.stdin(Stdio::piped());
        let mut program = Self::spawn(command);
        let input = program.child.stdin.take().expect("piped");
        (program, input)
    }

    fn spawn(mut command: Command) -> Self {
        let name = command.get_program().to_string_lossy().into_owned();
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let mut error_output = child.stderr.take().expect("piped");
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in output.split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let errors = thread::spawn(move || {
            let mut text = Vec::new();
            let _ = error_output.read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        });
        Self {
            name,
            child,
            lines,
            errors: Some(errors),
        }
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended.
    ///
    /// # Panics
    /// When it cannot be waited for.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("wait for a child").is_some()
    }

    /// The next line on standard output, or `None` when there will be no more.
    ///
    /// # Panics
    /// When none comes in time.
    pub fn next_line(&mut self) -> Option<String> {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => Some(line),
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => None,
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
                self.kill();
                let errors = self.take_errors();
                panic!("{}: no further line in {PATIENCE:?}; {errors}", self.name)
            }
        }
    }

    /// Waits until it ends by itself. Returns how, and what it wrote to standard error.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn wait(&mut self) -> (ExitStatus, String) {
        if let Some(status) = self.child.try_wait().expect("wait for a child") {
            return (status, self.take_errors());
        }
        let pid = Pid::from_child(&self.child);
        let pidfd =
            pidfd_open(pid, PidfdFlags::empty()).expect("pidfd_open of a child not waited for");
        let end = Instant::now() + PATIENCE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).expect("a minute fits");
            let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
            match poll(&mut fds, Some(&timeout)) {
                Ok(0) => {
                    self.kill();
                    let errors = self.take_errors();
                    panic!("{} did not end in {PATIENCE:?}; {errors}", self.name);
                }
                Ok(_) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => panic!("poll: {error}"),
            }
        }
        let status = self.child.wait().expect("wait for a child");
        (status, self.take_errors())
    }

    /// Kills it at once (`SIGKILL`) and waits until it is gone.
    pub fn kill(&mut self) {
        // It fails if the program has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn take_errors(&mut self) -> String {
        match self.errors.take() {
            Some(thread) => thread.join().unwrap_or_default(),
            None => String::new(),
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            let errors = self.take_errors();
            eprintln!("{}: {errors}", self.name);
        }
    }
}
