//! A program on a terminal of its own.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

/// How long a program may take to write what is expected.
const PATIENCE: Duration = Duration::from_secs(60);

type Shared = Arc<(Mutex<String>, Condvar)>;

pub(crate) struct Terminal {
    child: Child,
    keys: File,
    written: Shared,
    /// How much of it was expected.
    seen: usize,
    reader: Option<JoinHandle<()>>,
}

impl Terminal {
    /// Starts the program in a session of its own, with the terminal as its standard input, output and error.
    pub(crate) fn start(program: Command) -> Self {
        let control =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&control).unwrap();
        unlockpt(&control).unwrap();
        let name = ptsname(&control, Vec::new())
            .unwrap()
            .into_string()
            .unwrap();
        let open = || {
            OpenOptions::new()
                .read(true)
                .write(true)
                .open(&name)
                .unwrap()
        };
        let mut command = Command::new("setsid");
        command
            .args(["--ctty", "--wait"])
            .arg(program.get_program())
            .args(program.get_args());
        for (name, value) in program.get_envs() {
            command.env(name, value.unwrap_or_default());
        }
        command.current_dir(program.get_current_dir().unwrap());
        command
            .stdin(Stdio::from(open()))
            .stdout(Stdio::from(open()))
            .stderr(Stdio::from(open()));
        let child = command.spawn().unwrap();
        drop(command);
        let keys = File::from(control);
        let written = Shared::default();
        let reader = read(keys.try_clone().unwrap(), written.clone());
        Self {
            child,
            keys,
            written,
            seen: 0,
            reader: Some(reader),
        }
    }

    pub(crate) fn type_keys(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    pub(crate) fn type_line(&mut self, line: &str) {
        self.type_keys(&format!("{line}\r"));
    }

    /// Waits until the program has written this after what was expected before.
    pub(crate) fn expect(&mut self, wanted: &str) {
        let deadline = Instant::now() + PATIENCE;
        let (text, changed) = &*self.written;
        let mut text = text.lock().unwrap();
        loop {
            if let Some(at) = text[self.seen..].find(wanted) {
                self.seen += at + wanted.len();
                return;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no {wanted:?} in {:?}", &text[self.seen..]);
            text = changed.wait_timeout(text, left).unwrap().0;
        }
    }

    /// Waits until the shell has a child: a command runs.
    pub(crate) fn wait_for_child(&self) {
        let deadline = Instant::now() + PATIENCE;
        while !has_child(self.child.id()) {
            assert!(Instant::now() < deadline, "no command runs");
            thread::yield_now();
        }
    }

    /// The status, once the program has ended, and what it has written that was not expected.
    pub(crate) fn end(mut self) -> (Option<i32>, String) {
        let status = self.child.wait().unwrap().code();
        self.reader.take().unwrap().join().unwrap();
        let text = self.written.0.lock().unwrap();
        (status, text[self.seen..].to_owned())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // The terminal's end ends what else runs on it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn has_child(parent: u32) -> bool {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let mut stats =
        entries.filter_map(|entry| std::fs::read_to_string(entry.path().join("stat")).ok());
    stats.any(|stat| {
        // `number (name) state parent …`
        let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        after_name.split(' ').nth(1) == Some(&parent.to_string())
    })
}

/// Reads until no program has the terminal open any more.
fn read(mut control: File, written: Shared) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = control.read(&mut buffer) {
            let (text, changed) = &*written;
            let read = String::from_utf8_lossy(&buffer[..count]);
            text.lock().unwrap().push_str(&read);
            changed.notify_all();
        }
    })
}
