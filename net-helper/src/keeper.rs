//! The keeper of a dnsmasq: this program started again, for this alone.
//!
//! The helper cannot start programs once it is confined, and its death must not leave a dnsmasq behind. So the keeper starts dnsmasq when it
//! is told to, starts it again when it dies, and ends it when its standard input closes, which the kernel does for a helper that is
//! killed. It holds a lock meanwhile: the next helper's keeper waits for it. It has only the capabilities that dnsmasq's start needs.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use rustix::thread::{
    CapabilitySet, CapabilitySets, remove_capability_from_bounding_set, set_capabilities,
};

/// The first argument that makes this program a keeper. The second is the lock, then dnsmasq's command line.
pub(crate) const FLAG: &str = "--keep-dnsmasq";
/// What the helper says.
pub(crate) const GO: &str = "go\n";
/// What the keeper answers, or else what went wrong.
pub(crate) const READY: &str = "ready\n";

/// The option of dnsmasq's that no other process has in the same way.
pub(crate) const LEASE_FILE: &str = "--dhcp-leasefile=";

/// How long dnsmasq gets to end in order.
const PATIENCE: Duration = Duration::from_secs(2);
/// How soon after its death dnsmasq is started again; longer each time it does not get going.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What dnsmasq does before it becomes another user, and what ends it then.
const CAPABILITIES: CapabilitySet = CapabilitySet::NET_BIND_SERVICE
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::NET_ADMIN)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::KILL);

/// Runs the keeper.
pub(crate) fn main(mut args: impl Iterator<Item = OsString>) -> ExitCode {
    let (Some(lock), Some(program)) = (args.next(), args.next()) else {
        return ExitCode::FAILURE;
    };
    match keep(Path::new(&lock), PathBuf::from(program), args.collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stdout(), "{error}");
            ExitCode::FAILURE
        }
    }
}

fn keep(lock: &Path, program: PathBuf, arguments: Vec<OsString>) -> io::Result<()> {
    reduce_capabilities()?;
    let mut order = [0; GO.len()];
    if io::stdin().read_exact(&mut order).is_err() {
        return Ok(());
    }
    let mut lock = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(lock)?;
    flock(&lock, FlockOperation::LockExclusive)?;
    end_leftover(&mut lock, &arguments)?;
    let mut pause = FIRST_PAUSE;
    let mut told = false;
    loop {
        let mut server = Server::start(&program, &arguments)?;
        note(&mut lock, server.child.id())?;
        match server.attend(&mut told)? {
            Ended::Ordered => return Ok(()),
            Ended::ByItself(last_words) if !told => return Err(io::Error::other(last_words)),
            Ended::ByItself(_) => {}
        }
        if orders_closed(pause)? {
            return Ok(());
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn reduce_capabilities() -> io::Result<()> {
    for number in 0..u64::BITS {
        let one = CapabilitySet::from_bits_retain(1 << number);
        // Past the last capability, or without the right to give any up: nothing more to do here.
        if !CAPABILITIES.contains(one) && remove_capability_from_bounding_set(one).is_err() {
            break;
        }
    }
    let held = rustix::thread::capabilities(None)?.permitted & CAPABILITIES;
    let sets = CapabilitySets {
        effective: held,
        permitted: held,
        inheritable: CapabilitySet::empty(),
    };
    Ok(set_capabilities(None, sets)?)
}

/// Writes down who is kept, for a keeper after one that was killed.
fn note(lock: &mut File, pid: u32) -> io::Result<()> {
    lock.set_len(0)?;
    lock.rewind()?;
    write!(lock, "{pid}")
}

/// Ends the dnsmasq of a keeper that was killed, if it is still there and still that: another process with its number has not this
/// command line, which names a file of this program's own.
fn end_leftover(lock: &mut File, arguments: &[OsString]) -> io::Result<()> {
    let mut text = String::new();
    lock.read_to_string(&mut text)?;
    let Some(pid) = text.trim().parse().ok().and_then(Pid::from_raw) else {
        return Ok(());
    };
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else {
        return Ok(());
    };
    // Looked at after it was opened: if it is the one now, the descriptor is of that one.
    let line = std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
    let has = |wanted: &OsString| {
        line.split(|&byte| byte == 0)
            .any(|given| given == wanted.as_bytes())
    };
    if arguments
        .iter()
        .any(|a| a.as_bytes().starts_with(LEASE_FILE.as_bytes()) && has(a))
    {
        end(&process)?;
    }
    Ok(())
}

/// Ends a process and waits until it has: first politely.
fn end(process: &OwnedFd) -> io::Result<()> {
    for (signal, patience) in [(Signal::TERM, Some(PATIENCE)), (Signal::KILL, None)] {
        match pidfd_send_signal(process, signal) {
            Ok(()) => {}
            Err(Errno::SRCH) => return Ok(()),
            Err(e) => return Err(e.into()),
        }
        if readable([process.as_fd()], patience)? == [true] {
            return Ok(());
        }
    }
    Ok(())
}

/// Which of the descriptors have something to say, or have closed.
fn readable<const N: usize>(
    fds: [std::os::fd::BorrowedFd<'_>; N],
    patience: Option<Duration>,
) -> io::Result<[bool; N]> {
    let until = patience.map(|p| Instant::now() + p);
    let mut polled = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
    loop {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut polled, left.as_ref()) {
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
            Ok(_) => return Ok(polled.each_ref().map(|fd| !fd.revents().is_empty())),
        }
    }
}

/// Waits a while, and says whether the helper has gone meanwhile.
fn orders_closed(pause: Duration) -> io::Result<bool> {
    Ok(readable([io::stdin().as_fd()], Some(pause))? == [true])
}

enum Ended {
    Ordered,
    ByItself(String),
}

/// A dnsmasq that was started.
struct Server {
    child: Child,
    process: OwnedFd,
}

impl Server {
    fn start(program: &Path, arguments: &[OsString]) -> io::Result<Self> {
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| {
                io::Error::new(e.kind(), format!("cannot start {}: {e}", program.display()))
            })?;
        let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
        Ok(Server { child, process })
    }

    /// Follows what it says until it ends or is to be ended.
    fn attend(&mut self, told: &mut bool) -> io::Result<Ended> {
        let mut log = self
            .child
            .stderr
            .take()
            .ok_or_else(|| io::Error::other("dnsmasq has no standard error"))?;
        let mut last_words = LastLine::default();
        let mut listening = true;
        loop {
            let stdin = io::stdin();
            let [ordered, dead, said] = if listening {
                readable([stdin.as_fd(), self.process.as_fd(), log.as_fd()], None)?
            } else {
                let [ordered, dead] = readable([stdin.as_fd(), self.process.as_fd()], None)?;
                [ordered, dead, false]
            };
            if said {
                let mut bytes = [0; 1024];
                let length = log.read(&mut bytes)?;
                listening = length > 0;
                last_words.hear(bytes.get(..length).unwrap_or_default());
                // dnsmasq says this once its sockets are open and it has become its own user.
                if !*told && last_words.started {
                    *told = true;
                    io::stdout().write_all(READY.as_bytes())?;
                }
                continue;
            }
            if ordered {
                end(&self.process)?;
                self.child.wait()?;
                return Ok(Ended::Ordered);
            }
            if dead {
                let status = self.child.wait()?;
                return Ok(Ended::ByItself(
                    last_words.unless_none(&format!("ended with {status}")),
                ));
            }
        }
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
