//! How a program behaves towards whoever has started it: its umask, the signals it is to ignore, and a standard error
//! that nobody reads.

#![allow(clippy::unwrap_used, clippy::panic)]

mod alone;

use std::fs::File;
use std::io::{PipeReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use alone::{Case, again};
use bulkhead_process::{listen, signals, warn};
use rustix::fs::Mode;

const CASES: &[Case] = &[
    (
        "a_socket_has_its_mode_whatever_the_umask",
        a_socket_has_its_mode_whatever_the_umask,
    ),
    (
        "a_signal_that_is_ignored_at_the_start_stays_ignored",
        a_signal_that_is_ignored_at_the_start_stays_ignored,
    ),
    (
        "a_standard_error_that_nobody_reads_keeps_nobody_waiting",
        a_standard_error_that_nobody_reads_keeps_nobody_waiting,
    ),
    (
        "a_warning_that_was_left_out_is_counted",
        a_warning_that_was_left_out_is_counted,
    ),
    (
        "a_panic_waits_for_nobody_either",
        a_panic_waits_for_nobody_either,
    ),
];

/// What the cases start.
const PROGRAMS: &[Case] = &[
    ("warn_and_fail", warn_and_fail),
    ("panic", panic),
    ("warn_twice", warn_twice),
];

fn main() {
    let wanted = std::env::var("BULKHEAD_TEST_CASE").unwrap_or_default();
    match PROGRAMS.iter().find(|(name, _)| *name == wanted) {
        Some((_, program)) => program(),
        None => alone::main(CASES),
    }
}

fn a_socket_has_its_mode_whatever_the_umask() {
    let folder = tempfile::tempdir().unwrap();
    for umask in [0, 0o22, 0o277, 0o777] {
        let path = folder.path().join(format!("{umask:o}.sock"));
        let before = rustix::process::umask(Mode::from_raw_mode(umask));
        let listener = listen::listen(&path).unwrap();
        assert_eq!(
            rustix::process::umask(before),
            Mode::from_raw_mode(umask),
            "it is the program's"
        );
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600, "umask {umask:o}");
        drop(listener);
    }
}

fn a_signal_that_is_ignored_at_the_start_stays_ignored() {
    // SAFETY: no handler is installed.
    unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) };
    let termination = signals::block_termination().unwrap();
    // SAFETY: it is ignored.
    unsafe { libc::raise(libc::SIGHUP) };
    assert_eq!(termination.take().unwrap(), None);
    // SAFETY: it is blocked.
    unsafe { libc::raise(libc::SIGTERM) };
    assert_eq!(termination.take().unwrap(), Some(libc::SIGTERM));
}

#[derive(clap::Parser)]
struct Args {
    #[arg(long)]
    _unused: bool,
}

fn warn_and_fail() {
    let status = bulkhead_process::main::<Args>(|_| {
        warn("first");
        anyhow::bail!("second")
    });
    assert_eq!(status, ExitCode::from(1));
    std::process::exit(1);
}

fn panic() {
    bulkhead_process::main::<Args>(|_| panic!("on purpose"));
}

fn warn_twice() {
    warn("first");
    // The reader reports that there is room now.
    std::io::stdin().read_exact(&mut [0]).unwrap();
    warn("second");
}

/// A pipe that blocks, with no room left in it.
fn full_pipe() -> (PipeReader, Stdio) {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let size = rustix::pipe::fcntl_getpipe_size(&writer).unwrap();
    writer.write_all(&vec![b'x'; size]).unwrap();
    (reader, writer.into())
}

/// Its exit status, or a panic if it is still there after ten seconds.
fn ends(mut child: Child) -> Option<i32> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        if start.elapsed() > Duration::from_secs(10) {
            child.kill().unwrap();
            panic!("it waits for a reader");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn a_standard_error_that_nobody_reads_keeps_nobody_waiting() {
    let (_pipe, full) = full_pipe();
    let (socket, other) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut filling = socket.try_clone().unwrap();
    filling.set_nonblocking(true).unwrap();
    while filling.write(&[b'x'; 4096]).is_ok() {}
    filling.set_nonblocking(false).unwrap();
    let (broken, writer) = std::io::pipe().unwrap();
    drop(broken);
    let device = File::options().write(true).open("/dev/full").unwrap();
    for (what, stderr) in [
        ("a full pipe", full),
        ("a full socket", std::os::fd::OwnedFd::from(socket).into()),
        ("a broken pipe", writer.into()),
        ("a full device", device.into()),
    ] {
        let child = again("warn_and_fail").stderr(stderr).spawn().unwrap();
        assert_eq!(ends(child), Some(1), "{what}");
    }
    drop(other);
    let mut closed: Command = again("warn_and_fail");
    // SAFETY: close(2) may be called between fork and exec.
    unsafe {
        closed.pre_exec(|| {
            libc::close(2);
            Ok(())
        });
    }
    assert_eq!(ends(closed.spawn().unwrap()), Some(1), "a closed one");
}

fn a_warning_that_was_left_out_is_counted() {
    let (mut reader, full) = full_pipe();
    let mut child = again("warn_twice")
        .stderr(full)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    // The first has been left out once the program reads; there is no telling from outside, so the pipe stays full
    // until it sleeps there.
    while !std::fs::read_to_string(format!("/proc/{}/syscall", child.id()))
        .unwrap()
        .starts_with("0 0x0 ")
    {
        std::thread::yield_now();
    }
    let mut filling = vec![0; rustix::pipe::fcntl_getpipe_size(&reader).unwrap()];
    reader.read_exact(&mut filling).unwrap();
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    let mut said = String::new();
    reader.read_to_string(&mut said).unwrap();
    assert_eq!(said, "warning: second (1 other warnings were left out)\n");
    assert_eq!(ends(child), Some(0));
}

fn a_panic_waits_for_nobody_either() {
    let (_pipe, full) = full_pipe();
    let child = again("panic").stderr(full).spawn().unwrap();
    assert_ne!(ends(child), Some(0));

    let output = again("panic").output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.starts_with("error: this is a bug: in main: "),
        "{said}"
    );
    assert!(said.contains("on purpose"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}
