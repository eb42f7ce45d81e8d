//! The keeper of a dnsmasq, for one life of it: the first process of a PID namespace, which ends with it.
//!
//! It starts dnsmasq, reports what becomes of it, and ends it when its standard input closes, which the kernel does for a launcher that
//! is killed. It is another user than root, with no capability in effect. What it starts is this program again, which puts on
//! what dnsmasq is confined by and becomes dnsmasq.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use rustix::process::{
    Pid, PidfdFlags, Resource, Rlimit, Signal, getrlimit, pidfd_open, pidfd_send_signal, setrlimit,
};

use super::launcher::ready;
use super::{Kept, calls, namespaces, privileges};

/// The first argument that makes this program a keeper; then the words of [`Kept`].
pub(crate) const FLAG: &str = "--keep-dnsmasq";
/// The first argument that makes this program dnsmasq; then the same.
pub(crate) const BECOME_FLAG: &str = "--become-dnsmasq";
/// What the keeper reports once, or else what went wrong.
pub(crate) const READY: &str = "ready\n";

/// How long dnsmasq gets to end in order.
const PATIENCE: Duration = Duration::from_secs(2);
/// How many files dnsmasq may have open.
const FILES: u64 = 256;

/// Runs the keeper.
pub(crate) fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let args: Vec<_> = args.collect();
    let kept = Kept::parse(&args).ok_or_else(super::invalid);
    match kept.and_then(|kept| keep(&kept)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stdout(), "{error}");
            ExitCode::FAILURE
        }
    }
}

/// Becomes dnsmasq.
pub(crate) fn become_main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let args: Vec<_> = args.collect();
    let Some(kept) = Kept::parse(&args) else {
        return ExitCode::FAILURE;
    };
    let confined = privileges::become_root()
        .and_then(|()| namespaces::restrict_dnsmasq(&kept))
        .and_then(|()| calls::confine_dnsmasq());
    let error = match confined {
        Ok(()) => Command::new(kept.dnsmasq).args(kept.arguments).exec(),
        Err(error) => error,
    };
    let dnsmasq = kept.dnsmasq.display();
    let _ = writeln!(io::stderr(), "cannot start {dnsmasq}: {error}");
    ExitCode::FAILURE
}

fn keep(kept: &Kept<'_>) -> io::Result<()> {
    privileges::become_keeper(kept.user, kept.group)?;
    let possible = getrlimit(Resource::Nofile).maximum.unwrap_or(FILES);
    let files = Some(FILES.min(possible));
    let few = Rlimit {
        current: files,
        maximum: files,
    };
    setrlimit(Resource::Nofile, few)?;
    calls::confine_keeper()?;
    let child = Command::new(kept.program)
        .arg0("bulkhead-net-helper")
        .arg(BECOME_FLAG)
        .args(kept.words)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
    Server { child, process }.attend()
}

/// A dnsmasq that was started.
struct Server {
    child: Child,
    process: OwnedFd,
}

impl Server {
    /// Follows what it says until it ends or is to be ended.
    fn attend(mut self) -> io::Result<()> {
        let log = self.child.stderr.take();
        let mut log = log.ok_or_else(super::invalid)?;
        let mut last_words = LastLine::default();
        let (mut listening, mut told) = (true, false);
        loop {
            let stdin = io::stdin();
            let [ordered, dead, said] = if listening {
                ready([stdin.as_fd(), self.process.as_fd(), log.as_fd()], None)?
            } else {
                let [ordered, dead] = ready([stdin.as_fd(), self.process.as_fd()], None)?;
                [ordered, dead, false]
            };
            if said {
                let mut bytes = [0; 1024];
                let length = log.read(&mut bytes)?;
                listening = length > 0;
                last_words.hear(bytes.get(..length).unwrap_or_default());
                // dnsmasq says this once its sockets are open and it has become its own user.
                if !told && last_words.started {
                    told = true;
                    io::stdout().write_all(READY.as_bytes())?;
                }
                continue;
            }
            if ordered {
                return self.end();
            }
            if dead {
                let status = self.child.wait()?;
                let otherwise = format!("ended with {status}");
                return match told {
                    true => Ok(()),
                    false => Err(io::Error::other(last_words.unless_none(&otherwise))),
                };
            }
        }
    }

    /// Ends it: politely, for the end of this process kills it.
    fn end(self) -> io::Result<()> {
        // One that is not its own user yet cannot be told.
        if pidfd_send_signal(&self.process, Signal::TERM).is_ok() {
            ready([self.process.as_fd()], Some(PATIENCE))?;
        }
        Ok(())
    }
}

/// The last whole line of a log, without its prefix.
#[derive(Default)]
struct LastLine {
    partial: Vec<u8>,
    line: String,
    started: bool,
}

impl LastLine {
    fn hear(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte != b'\n' {
                // A line nobody would read to its end.
                if self.partial.len() < 1024 {
                    self.partial.push(byte);
                }
                continue;
            }
            let line = String::from_utf8_lossy(&self.partial).trim().to_owned();
            self.partial.clear();
            self.started |= line.contains("started, version");
            if !line.is_empty() {
                self.line = line.strip_prefix("dnsmasq: ").unwrap_or(&line).to_owned();
            }
        }
    }

    fn unless_none(&self, otherwise: &str) -> String {
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
    fn the_last_line_is_heard_across_reads() {
        let mut log = LastLine::default();
        log.hear(b"dnsmasq: started, ver");
        assert!(!log.started);
        log.hear(b"sion 2.90\n\ndnsmasq: failed to bind\n");
        assert!(log.started);
        assert_eq!(log.unless_none("x"), "failed to bind");
    }
}
