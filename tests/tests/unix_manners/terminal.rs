//! `bulkhead run` on a terminal: it is given back whatever happens, and Ctrl-C, Ctrl-Z from outside and hang-ups do
//! what they do to others.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Command, Stdio};

use bulkhead_tests::guest::{in_own_host, kernel, kvm_is_usable, processes};
use bulkhead_tests::workplace::Workplace;
use rustix::process::Signal;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};

use crate::program::{eventually, kill};

/// A terminal with `bulkhead run` on it, in a session of its own.
struct Terminal {
    /// What a terminal emulator has.
    master: Option<File>,
    /// The end that programs see.
    slave: File,
    child: std::process::Child,
}

impl Terminal {
    /// `wrapper` is what the command is started by.
    fn run(wrapper: &[&str]) -> Self {
        let master =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let slave = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOCTTY)
            .open(name.to_str().unwrap())
            .unwrap();
        let bulkhead = Workplace::find().unwrap().program("bulkhead").unwrap();
        let mut command = Command::new("setsid");
        command
            .args(["--ctty", "--wait"])
            .args(wrapper)
            .arg(bulkhead);
        command.args([
            "run",
            "--name",
            "t",
            "--memory",
            "64M",
            "--cmdline",
            "test=echo n=1000",
        ]);
        command.arg("--kernel").arg(kernel());
        let end = || Stdio::from(slave.try_clone().unwrap());
        let child = command
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .unwrap();
        let terminal = Self {
            master: Some(File::from(master)),
            slave,
            child,
        };
        terminal.expect("guest: start");
        terminal
    }

    /// Waits until this is on the screen.
    fn expect(&self, text: &str) {
        let mut screen = Vec::new();
        let mut master = self.master.as_ref().unwrap();
        while !String::from_utf8_lossy(&screen).contains(text) {
            let mut bytes = [0; 1024];
            let length = master.read(&mut bytes).unwrap();
            screen.extend(&bytes[..length]);
        }
    }

    fn is_raw(&self) -> bool {
        let modes = tcgetattr(&self.slave).unwrap();
        !modes.local_modes.contains(LocalModes::ICANON)
    }

    /// Its `bulkhead`.
    fn bulkhead(&self) -> u32 {
        named("bulkhead")
    }

    /// Waits for the end; the terminal is as it was.
    fn end(mut self) -> Option<i32> {
        // A terminal emulator goes on reading.
        if let Some(mut master) = self.master.take() {
            std::thread::spawn(move || while matches!(master.read(&mut [0; 1024]), Ok(1..)) {});
        }
        let status = self.child.wait().unwrap();
        assert!(!self.is_raw(), "the terminal is given back");
        status.code()
    }
}

fn named(name: &str) -> u32 {
    let (number, _) = processes()
        .into_iter()
        .find(|(_, other)| other == name)
        .unwrap();
    number
}

fn state(process: u32) -> String {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let (_, rest) = stat.rsplit_once(") ").unwrap();
    rest.chars().take(1).collect()
}

fn on_a_terminal(test: &str, body: impl FnOnce()) {
    if kvm_is_usable(test) {
        in_own_host(test, || {
            body();
            assert_eq!(processes(), []);
        });
    }
}

#[test]
fn ctrl_c_ends_the_guest_and_gives_the_terminal_back() {
    on_a_terminal(
        "terminal::ctrl_c_ends_the_guest_and_gives_the_terminal_back",
        || {
            let terminal = Terminal::run(&[]);
            assert!(terminal.is_raw());
            terminal
                .master
                .as_ref()
                .unwrap()
                .write_all(b"\x03")
                .unwrap();
            assert_eq!(terminal.end(), Some(0));
        },
    );
}

#[test]
fn the_terminal_is_given_back_when_the_monitor_is_killed() {
    on_a_terminal(
        "terminal::the_terminal_is_given_back_when_the_monitor_is_killed",
        || {
            let terminal = Terminal::run(&[]);
            kill(named("bulkhead-vmm"), Signal::KILL);
            assert_eq!(terminal.end(), Some(1));
        },
    );
}

#[test]
fn a_stopped_job_gives_the_terminal_back_and_takes_it_again() {
    on_a_terminal(
        "terminal::a_stopped_job_gives_the_terminal_back_and_takes_it_again",
        || {
            let terminal = Terminal::run(&[]);
            let bulkhead = terminal.bulkhead();
            for _ in 0..3 {
                kill(bulkhead, Signal::TSTP);
                eventually("it stops", || state(bulkhead) == "T");
                assert!(!terminal.is_raw());
                kill(bulkhead, Signal::CONT);
                eventually("it continues", || terminal.is_raw());
            }
            terminal
                .master
                .as_ref()
                .unwrap()
                .write_all(b"hello\r")
                .unwrap();
            terminal.expect("hello");
            kill(bulkhead, Signal::TERM);
            assert_eq!(terminal.end(), Some(0));
        },
    );
}

#[test]
fn a_background_job_runs_without_the_terminal_and_ends_on_sigterm() {
    on_a_terminal(
        "terminal::a_background_job_runs_without_the_terminal_and_ends_on_sigterm",
        || {
            // As a shell does it for `bulkhead run … &`, and for SIGTSTP and `bg`.
            let terminal = Terminal::run(&["bash", "-c", "set -m; \"$@\" & wait -f $!", "bash"]);
            let bulkhead = terminal.bulkhead();
            assert!(!terminal.is_raw());
            terminal
                .master
                .as_ref()
                .unwrap()
                .write_all(b"hello\r")
                .unwrap();
            kill(bulkhead, Signal::TSTP);
            eventually("it stops", || state(bulkhead) == "T");
            kill(bulkhead, Signal::CONT);
            eventually("it continues", || state(bulkhead) != "T");
            assert!(!terminal.is_raw());
            kill(bulkhead, Signal::TERM);
            assert_eq!(terminal.end(), Some(0));
        },
    );
}

#[test]
fn a_terminal_that_goes_away_ends_the_guest_unless_that_is_ignored() {
    on_a_terminal(
        "terminal::a_terminal_that_goes_away_ends_the_guest_unless_that_is_ignored",
        || {
            let mut terminal = Terminal::run(&[]);
            drop(terminal.master.take());
            assert_eq!(terminal.child.wait().unwrap().code(), Some(0));

            let mut terminal = Terminal::run(&["sh", "-c", "trap '' HUP; exec \"$@\"", "sh"]);
            drop(terminal.master.take());
            let bulkhead = terminal.bulkhead();
            // What ends it is SIGTERM, not what came before.
            assert!(terminal.child.try_wait().unwrap().is_none());
            kill(bulkhead, Signal::TERM);
            assert_eq!(terminal.child.wait().unwrap().code(), Some(0));
        },
    );
}
