//! The program under test: started as a service manager does it, waited for, and observed.

use std::fs::Permissions;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Resource, Rlimit, Signal, pidfd_open, pidfd_send_signal, prlimit,
};

use crate::PATIENCE;

/// Longer than any test runs.
const LIFE: Timespec = Timespec {
    tv_sec: 300,
    tv_nsec: 0,
};

/// Starts `command` and waits until it is ready. Its notify socket is made in `folder`; its standard error should be
/// piped.
pub fn start(command: &mut Command, folder: &Path) -> Child {
    let notify = folder.join("notify");
    let _ = std::fs::remove_file(&notify);
    let manager = UnixDatagram::bind(&notify).unwrap();
    // The program may be another user's.
    std::fs::set_permissions(&notify, Permissions::from_mode(0o777)).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut child = command.env("NOTIFY_SOCKET", &notify).spawn().unwrap();
    kill_after_life(&child);
    let mut message = [0; 16];
    match manager.recv(&mut message) {
        Ok(length) => assert_eq!(&message[..length], b"READY=1\n"),
        Err(error) => {
            let _ = child.kill();
            let output = child.wait_with_output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            panic!("not ready: {error}; {said}");
        }
    }
    child
}

/// Kills `child` if it lives longer than any test runs. The `vhost` crate waits for replies without a limit; this
/// closes the connection, and the test fails.
fn kill_after_life(child: &Child) {
    let process = pidfd_open(Pid::from_child(child), PidfdFlags::empty()).unwrap();
    std::thread::spawn(move || {
        let mut fds = [PollFd::new(&process, PollFlags::IN)];
        if let Ok(0) = poll(&mut fds, Some(&LIFE)) {
            let _ = pidfd_send_signal(&process, Signal::KILL);
        }
    });
}

/// Waits until `child` has ended. Kills it and panics if it does not.
pub fn wait(child: &mut Child) -> ExitStatus {
    let process = pidfd_open(Pid::from_child(child), PidfdFlags::empty()).unwrap();
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        let left = PATIENCE.saturating_sub(start.elapsed());
        if left.is_zero() {
            let _ = child.kill();
            panic!("the program does not end");
        }
        let mut fds = [PollFd::new(&process, PollFlags::IN)];
        let _ = poll(&mut fds, Some(&Timespec::try_from(left).unwrap()));
    }
}

/// What `child`, which has ended, wrote to standard error.
pub fn said(child: &mut Child) -> String {
    let mut said = String::new();
    let mut stderr = child.stderr.take().unwrap();
    stderr.read_to_string(&mut said).unwrap();
    said
}

/// Limits how many files `child` may have open.
pub fn allow_files(child: &Child, files: u64) {
    let process = Some(Pid::from_child(child));
    let before = rustix::process::getrlimit(Resource::Nofile);
    let limit = Rlimit {
        current: Some(files),
        maximum: before.maximum,
    };
    prlimit(process, Resource::Nofile, limit).unwrap();
}

/// The processor time that `child` has used, all of its threads together, in steps of 10 ms.
#[must_use]
pub fn processor_time(child: &Child) -> Duration {
    used(&format!("/proc/{}/stat", child.id()))
}

/// The processor time that the main thread of `child` has used, in steps of 10 ms.
#[must_use]
pub fn main_thread_time(child: &Child) -> Duration {
    let id = child.id();
    used(&format!("/proc/{id}/task/{id}/stat"))
}

/// utime and stime of proc_pid_stat(5), in clock ticks.
fn used(stat: &str) -> Duration {
    let stat = std::fs::read_to_string(stat).unwrap();
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    let ticks = fields[11..13]
        .iter()
        .map(|field| field.parse::<u64>().unwrap());
    Duration::from_millis(10 * ticks.sum::<u64>())
}
