//! The init of the PID namespace that one run of dnsmasq is in: it starts dnsmasq, and both end together.
//!
//! It reports whether dnsmasq listens, and stops it when its own standard input closes, which the kernel does for a
//! supervisor that is killed. It runs as dnsmasq's user, with no capability in effect. It starts this program once
//! more, as a process that confines itself and then executes dnsmasq ([`exec_dnsmasq`]).

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode, Stdio};

use rustix::process::{
    Pid, PidfdFlags, Resource, Rlimit, Signal, getrlimit, pidfd_open, pidfd_send_signal, setrlimit,
};

use super::params::{Params, Role, invalid};
use super::pipe::{DNSMASQ_STOP_TIMEOUT, READY, poll_readable};
use super::{namespaces, privileges, seccomp};

/// How many files dnsmasq may have open.
const MAX_OPEN_FILES: u64 = 256;

/// Runs init; its arguments are [`Params`].
pub(super) fn run(args: &[OsString]) -> io::Result<()> {
    let params = Params::parse(args)?;
    privileges::become_init(params.user, params.group)?;
    let possible = getrlimit(Resource::Nofile).maximum;
    let files = Some(possible.map_or(MAX_OPEN_FILES, |most| most.min(MAX_OPEN_FILES)));
    let limit = Rlimit {
        current: files,
        maximum: files,
    };
    setrlimit(Resource::Nofile, limit)?;
    seccomp::confine_init()?;
    let child = Command::new(params.program)
        .arg0("bulkhead-net-helper")
        .arg(Role::Dnsmasq.flag())
        .args(params.args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
    Dnsmasq { child, process }.watch()
}

/// Confines this process and executes dnsmasq in it. Returns only if that fails.
pub(super) fn exec_dnsmasq(args: &[OsString]) -> ExitCode {
    let Ok(params) = Params::parse(args) else {
        return ExitCode::FAILURE;
    };
    let confined = privileges::become_root()
        .and_then(|()| namespaces::restrict_dnsmasq(&params))
        .and_then(|()| seccomp::confine_dnsmasq());
    let error = match confined {
        Ok(()) => Command::new(params.dnsmasq)
            .args(params.dnsmasq_args)
            .exec(),
        Err(error) => error,
    };
    let dnsmasq = params.dnsmasq.display();
    let _ = writeln!(io::stderr(), "cannot start {dnsmasq}: {error}");
    ExitCode::FAILURE
}

/// The dnsmasq that was started.
struct Dnsmasq {
    child: Child,
    process: OwnedFd,
}

impl Dnsmasq {
    /// Reads dnsmasq's log, and reports that it listens or why it has ended. Returns when dnsmasq has ended.
    fn watch(mut self) -> io::Result<()> {
        let log = self.child.stderr.take();
        let mut log = log.ok_or_else(invalid)?;
        let mut last_line = LastLine::default();
        let (mut log_is_open, mut is_ready) = (true, false);
        loop {
            let stdin = io::stdin();
            let [is_to_stop, has_ended, has_log] = if log_is_open {
                poll_readable([stdin.as_fd(), self.process.as_fd(), log.as_fd()], None)?
            } else {
                let [stop, ended] = poll_readable([stdin.as_fd(), self.process.as_fd()], None)?;
                [stop, ended, false]
            };
            if has_log {
                let mut bytes = [0; 1024];
                let length = log.read(&mut bytes)?;
                log_is_open = length > 0;
                last_line.push(bytes.get(..length).unwrap_or_default());
                if !is_ready && last_line.has_started {
                    is_ready = true;
                    io::stdout().write_all(READY.as_bytes())?;
                }
                continue;
            }
            if is_to_stop {
                return self.stop();
            }
            if has_ended {
                let status = self.child.wait()?;
                return match is_ready {
                    true => Ok(()),
                    false => Err(io::Error::other(
                        last_line.or(&format!("ended with {status}")),
                    )),
                };
            }
        }
    }

    /// Stops dnsmasq with SIGTERM, so that it can write its leases. The kernel kills it when this process, its init,
    /// ends.
    fn stop(self) -> io::Result<()> {
        // Until dnsmasq has become its own user it is root's, and this process may not signal it.
        if pidfd_send_signal(&self.process, Signal::TERM).is_ok() {
            poll_readable([self.process.as_fd()], Some(DNSMASQ_STOP_TIMEOUT))?;
        }
        Ok(())
    }
}

/// The last whole line of dnsmasq's log, without its prefix.
#[derive(Default)]
struct LastLine {
    partial: Vec<u8>,
    line: String,
    /// Whether dnsmasq has logged its start, which it does once its sockets are open and it has become its own user.
    has_started: bool,
}

impl LastLine {
    fn push(&mut self, bytes: &[u8]) {
        // A longer line is cut off.
        const LENGTH: usize = 1024;
        for &byte in bytes {
            if byte != b'\n' {
                if self.partial.len() < LENGTH {
                    self.partial.push(byte);
                }
                continue;
            }
            let line = String::from_utf8_lossy(&self.partial).trim().to_owned();
            self.partial.clear();
            self.has_started |= line.contains("started, version");
            if !line.is_empty() {
                self.line = line.strip_prefix("dnsmasq: ").unwrap_or(&line).to_owned();
            }
        }
    }

    /// The line, or `otherwise` if dnsmasq has logged none.
    fn or(&self, otherwise: &str) -> String {
        if self.line.is_empty() {
            otherwise.to_owned()
        } else {
            self.line.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_is_found_across_reads() {
        let mut log = LastLine::default();
        log.push(b"dnsmasq: started, ver");
        assert!(!log.has_started);
        log.push(b"sion 2.90\n\ndnsmasq: failed to bind\n");
        assert!(log.has_started);
        assert_eq!(log.or("x"), "failed to bind");
    }
}
