//! `bulkhead-vmm` with the bare-metal guest.

use std::ffi::OsString;
use std::path::Path;
use std::process::{ChildStdin, Command, ExitStatus};

use super::backend::Backend;
use super::kernel;
use super::program::Program;
use crate::workplace::Workplace;

/// A monitor that runs the guest, its serial port on standard output.
pub struct Machine {
    program: Program,
}

/// A line the guest has said, without `guest: `.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line(pub String);

impl Line {
    /// The value of `name=value` in it.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn value(&self, name: &str) -> &str {
        self.0
            .split(' ')
            .filter_map(|word| word.split_once('='))
            .find_map(|(key, value)| (key == name).then_some(value))
            .unwrap_or_else(|| panic!("no {name}= in {:?}", self.0))
    }

    /// The number (decimal, or hexadecimal with `0x`) in it.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn number(&self, name: &str) -> u64 {
        let value = self.value(name);
        match value.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16),
            None => value.parse(),
        }
        .unwrap_or_else(|_| panic!("{name}={value} is no number"))
    }
}

const QEMU: &str = "qemu-system-x86_64";

/// Whether this program is installed; says so when not, in the name of the test.
#[must_use]
pub fn is_installed(program: &str, test: &str) -> bool {
    match Command::new(program).arg("--version").output() {
        Ok(output) if output.status.success() => true,
        _ => {
            eprintln!("skipped: {test}: {program} is not installed");
            false
        }
    }
}

/// Whether there is a KVM to run the guest on; says why not, in the name of the test.
#[must_use]
pub fn kvm_is_usable(test: &str) -> bool {
    match kvm_ioctls::Kvm::new() {
        Ok(_) => true,
        Err(error) => {
            eprintln!("skipped: {test}: /dev/kvm: {error}");
            false
        }
    }
}

impl Machine {
    /// Starts `bulkhead-vmm` with `arguments` beyond the guest and its command line. Without `--memory` the guest
    /// gets 64 MiB.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(words: &str, arguments: &[OsString]) -> Self {
        Self {
            program: Program::start(monitor(words, "tty", arguments)),
        }
    }

    /// The same, and returns what writes to its standard input.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start_with_input(words: &str, arguments: &[OsString]) -> (Self, ChildStdin) {
        let (program, input) = Program::start_with_input(monitor(words, "tty", arguments));
        (Self { program }, input)
    }

    /// The same with the serial port elsewhere: `next_line` will see nothing.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start_with_serial(words: &str, serial: &str, arguments: &[OsString]) -> Self {
        Self {
            program: Program::start(monitor(words, serial, arguments)),
        }
    }

    /// Starts QEMU, interpreting, with the same guest and memory that it can share.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start_qemu(words: &str, arguments: &[OsString]) -> Self {
        let mut command = Command::new(QEMU);
        command.args([
            "-machine",
            "q35,memory-backend=ram",
            "-accel",
            "tcg",
            "-cpu",
            "max",
        ]);
        command.args([
            "-m",
            "64M",
            "-object",
            "memory-backend-memfd,id=ram,size=64M,share=on",
        ]);
        command.args([
            "-nodefaults",
            "-no-reboot",
            "-display",
            "none",
            "-serial",
            "stdio",
        ]);
        command
            .arg("-kernel")
            .arg(kernel())
            .args(["-append", words]);
        command.args(arguments);
        Self {
            program: Program::start(command),
        }
    }

    /// The monitor's process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.program.id()
    }

    /// The guest's next line, `None` when there will be no more.
    ///
    /// # Panics
    /// When none comes in time, or it is that of a failed guest.
    pub fn next_line(&mut self) -> Option<Line> {
        while let Some(line) = self.program.next_line() {
            let Some(said) = line.strip_prefix("guest: ") else {
                continue;
            };
            assert!(!said.starts_with("failed"), "guest {said}");
            return Some(Line(said.to_owned()));
        }
        None
    }

    /// Waits for a line that begins with `start`.
    ///
    /// # Panics
    /// When it does not come.
    pub fn expect(&mut self, start: &str) -> Line {
        while let Some(line) = self.next_line() {
            if line.0.starts_with(start) {
                return line;
            }
        }
        let (status, errors) = self.program.wait();
        panic!("the guest never said {start:?}; the monitor ended with {status}: {errors}");
    }

    /// Waits until the monitor ends by itself. Returns how, and what it wrote to standard error.
    pub fn wait(mut self) -> (ExitStatus, String) {
        self.program.wait()
    }

    /// Waits for the guest's `ok` and an orderly and silent end of the monitor.
    ///
    /// # Panics
    /// When that is not how it ends.
    pub fn expect_success(self) {
        assert_eq!(self.expect_end(), "");
    }

    /// Waits for the guest's `ok` and an orderly end of the monitor, which must have said nothing but that the
    /// backend was gone and came back, up to `times` each: one that is killed again before it was found is not missed
    /// twice, and what happened in the last second is not reported any more.
    ///
    /// # Panics
    /// When that is not how it ends.
    pub fn expect_success_after_losing_backend(self, times: usize) {
        let said = self.expect_end();
        let count = |what| said.lines().filter(|line| line.contains(what)).count();
        let (gone, back) = (count("is gone"), count("is back"));
        assert!(gone <= times && back <= gone, "{said}");
        assert_eq!(said.lines().count(), gone + back, "{said}");
    }

    /// Waits for the guest's `ok` and an orderly end of the monitor. Returns what that wrote to standard error.
    ///
    /// # Panics
    /// When that is not how it ends.
    pub fn expect_end(mut self) -> String {
        self.expect("ok");
        let (status, errors) = self.program.wait();
        assert_eq!(status.code(), Some(0), "{errors}");
        errors
    }
}

fn monitor(words: &str, serial: &str, arguments: &[OsString]) -> Command {
    let program = Workplace::find().unwrap().program("bulkhead-vmm").unwrap();
    let mut command = Command::new(program);
    command.arg("--kernel").arg(kernel());
    command.args(["--cmdline", words, "--serial", serial]);
    if !arguments.iter().any(|argument| argument == "--memory") {
        command.args(["--memory", "size=64M"]);
    }
    command.args(arguments);
    command
}

/// `--disk` for a backend.
#[must_use]
pub fn disk(backend: &Backend) -> [OsString; 2] {
    attach("--disk", backend.socket(), "")
}

/// `--net` for a backend, with more of its parameters.
#[must_use]
pub fn net(backend: &Backend, more: &str) -> [OsString; 2] {
    attach("--net", backend.socket(), more)
}

fn attach(option: &str, socket: &Path, more: &str) -> [OsString; 2] {
    let mut value = OsString::from("vhost_user=on,socket=");
    value.push(socket);
    value.push(more);
    [option.into(), value]
}
