//! The first process of a container, which has to wait for orphans. It runs `bulkhead` again as a second process.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::Context;
use bulkhead_process::signals::{self, SignalFd};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, getpid, kill_process, wait};

/// Whether this process is the first one of its process namespace.
pub(crate) fn is_needed() -> bool {
    getpid().is_init()
}

/// Runs this program again, and waits for its end. All other processes end with the first one.
pub(crate) fn run() -> anyhow::Result<ExitCode> {
    const SIGNALS: &str = "cannot wait for signals";
    let signals = signals::block(&[libc::SIGCHLD]).context(SIGNALS)?;
    let ends = signals::block_termination().context(SIGNALS)?;
    let own = std::env::current_exe().unwrap_or_else(|_| "bulkhead".into());
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_default();
    let mut command = Command::new(&own);
    command.arg0(name).args(arguments);
    let child = command
        .spawn()
        .with_context(|| format!("cannot start {}", own.display()))?;
    let child = Pid::from_child(&child);
    loop {
        let mut fds = [&signals, &ends].map(|fd| PollFd::new(fd, PollFlags::IN));
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        pass_on(&ends, child)?;
        while signals.take()?.is_some() {}
        while let Ok(Some((process, status))) = wait(WaitOptions::NOHANG) {
            if process == child {
                return Ok(exit_code(status));
            }
        }
    }
}

fn pass_on(ends: &SignalFd, child: Pid) -> anyhow::Result<()> {
    while let Some(signal) = ends.take()? {
        if let Some(signal) = Signal::from_named_raw(signal) {
            // The child is not waited for yet, so its process id is not used again.
            let _ = kill_process(child, signal);
        }
    }
    Ok(())
}

/// The status, as a shell converts it.
fn exit_code(status: WaitStatus) -> ExitCode {
    let by_signal = || Some(status.terminating_signal()? + 128);
    let code = status.exit_status().or_else(by_signal).unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
