//! One running process: started so that it ends with us, watched to its end, told to stop by a handle that never names another.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{self, ChildStderr, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};

use crossbeam_channel::{Sender, bounded};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::console::Input;
use super::event::{Ended, Event};
use crate::guest::{Process, Role};

/// A process that has been started.
#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) pid: u32,
    handle: OwnedFd,
    ready: Arc<AtomicBool>,
}

impl Child {
    /// Starts it. Its end becomes [`Event::Ended`] with `index`.
    pub(crate) fn start(
        process: &Process,
        index: usize,
        notify: &Path,
        input: &Input,
        events: &Sender<Event>,
    ) -> io::Result<Self> {
        let monitor = process.role == Role::Monitor;
        let mut command = Command::new(&process.program.path);
        command
            .args(&process.args)
            .env("NOTIFY_SOCKET", notify)
            // Ctrl-C reaches us alone; we end the others in order.
            .process_group(0)
            .stdin(match monitor {
                true => Stdio::piped(),
                false => null()?,
            })
            .stdout(match monitor {
                true => Stdio::inherit(),
                false => null()?,
            })
            .stderr(Stdio::piped());
        end_with_parent(&mut command);
        let ready = Arc::new(AtomicBool::new(false));
        let (name, events, told) = (process.name.clone(), events.clone(), ready.clone());
        let (sender, started) = bounded(1);
        std::thread::Builder::new()
            .name(format!("watch-{name}"))
            .spawn(move || {
                // It is a thread's, and where it cannot be had (it is root's) the others are seen and no more.
                let _ = number_processes_anew();
                let Some(mut child) = started_for(&sender, command.spawn()) else {
                    return;
                };
                let (pid, stderr) = (child.id(), child.stderr.take());
                let last_words = stderr.and_then(|stderr| listen(stderr, &name, &told));
                let ended = child.wait().map(|status| Ended { status, last_words });
                // Nobody listens any more once the run is over.
                let _ = events.send(Event::Ended(index, pid, ended));
            })?;
        let lost = |_| io::Error::other("lost track of it");
        let (pid, handle, stdin) = started.recv().map_err(lost)??;
        if let Some(stdin) = stdin {
            *input.lock().unwrap_or_else(PoisonError::into_inner) = Some(stdin);
        }
        Ok(Self { pid, handle, ready })
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    pub(crate) fn set_ready(&self) {
        self.ready.store(true, Ordering::Relaxed);
    }

    /// Fails only when it has ended already, which is as well.
    pub(crate) fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(&self.handle, signal);
    }
}

/// Standard input or output of a process that needs none. Opened here: the standard library would not name it in an error.
fn null() -> io::Result<Stdio> {
    const NULL: &str = "/dev/null";
    let opened = File::options().read(true).write(true).open(NULL);
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{NULL}: {error}"));
    opened.map(Stdio::from).map_err(named)
}

/// What the supervisor has of a process: its number, a handle, what writes to its standard input.
type Started = (u32, OwnedFd, Option<ChildStdin>);

/// Gives the supervisor its part of what was started.
fn started_for(
    supervisor: &Sender<io::Result<Started>>,
    spawned: io::Result<process::Child>,
) -> Option<process::Child> {
    let parts = spawned.and_then(|mut child| {
        // Our own child: until it is waited for, its number is its own.
        let handle = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
        let stdin = child.stdin.take();
        Ok(((child.id(), handle, stdin), child))
    });
    let (parts, child) = match parts {
        Ok((parts, child)) => (Ok(parts), Some(child)),
        Err(error) => (Err(error), None),
    };
    supervisor.send(parts).ok()?;
    child
}

/// The longest line that is passed on, in bytes.
const LONGEST_LINE: usize = 1024;

/// Passes on what it says; keeps the last line said before it is ready, for the error that its end will be.
pub(super) fn listen(stderr: ChildStderr, name: &str, ready: &AtomicBool) -> Option<String> {
    let mut last = None;
    let mut stderr = BufReader::new(stderr);
    while let Some(line) = next_line(&mut stderr) {
        let error = line.strip_prefix("error: ");
        if !ready.load(Ordering::Relaxed) {
            last = Some(error.unwrap_or(&line).to_owned());
            continue;
        }
        let words = line.strip_prefix("warning: ").or(error).unwrap_or(&line);
        bulkhead_process::warn(&format!("{name}: {words}"));
    }
    last
}

/// The next line, as much of it as is passed on. A process that has been taken over may say anything, of any length.
fn next_line(from: &mut impl BufRead) -> Option<String> {
    let mut line = Vec::new();
    let mut start = from.by_ref().take(LONGEST_LINE as u64);
    start.read_until(b'\n', &mut line).ok()?;
    if line.is_empty() {
        return None;
    }
    if line.pop_if(|last| *last == b'\n').is_none() {
        from.skip_until(b'\n').ok()?;
    }
    Some(String::from_utf8_lossy(&line).into_owned())
}

/// Even when we are killed, nothing of this guest runs on.
#[allow(unsafe_code)]
fn end_with_parent(command: &mut Command) {
    let parent = rustix::process::getpid();
    let arrange = move || {
        // As the first process of its namespace it would not heed the signal before it has said how.
        begin(Some(libc::SIGTERM));
        heed_termination();
        rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
        // We may have been killed before that. From a namespace of its own that is not seen.
        if rustix::process::getppid().is_some_and(|now| now != parent) {
            return Err(rustix::io::Errno::OWNERDEAD.into());
        }
        Ok(())
    };
    // SAFETY: between fork and exec only system calls are made; nothing is allocated and no lock is taken. Needed because the standard
    // library has no safe way to do this for a child.
    unsafe { command.pre_exec(arrange) };
}

/// What this process is told by its terminal is not for the child, and what becomes of this process is nothing to it.
#[allow(unsafe_code)]
pub(super) fn detach(command: &mut Command) {
    let arrange = || {
        begin(None);
        rustix::process::setsid()?;
        Ok(())
    };
    // SAFETY: as in `end_with_parent`.
    unsafe { command.pre_exec(arrange) };
}

/// What this thread starts from now on, one process and what that starts, has process numbers of its own: it sees no other process, and can
/// signal none. All of it ends with that process.
#[allow(unsafe_code)]
fn number_processes_anew() -> io::Result<()> {
    // SAFETY: it changes nothing but what the next fork of this thread does. rustix has it as unsafe, too.
    match unsafe { libc::unshare(libc::CLONE_NEWPID) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A child begins with no signal blocked but perhaps one, unlike this process, which reads signals as a descriptor, and with standard input, output and error alone: what this
/// process has inherited is nothing to it.
#[allow(unsafe_code)]
fn begin(blocked: Option<libc::c_int>) {
    const FIRST: libc::c_uint = 3;
    // SAFETY: the set is initialised by sigemptyset before it is read. The calls are async-signal-safe, and touch no memory but the set. Without
    // close_range(2) (Linux 5.11) nothing is lost but this.
    unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&mut set);
        if let Some(signal) = blocked {
            libc::sigaddset(&mut set, signal);
        }
        libc::sigprocmask(libc::SIG_SETMASK, &set, std::ptr::null_mut());
        let flags = libc::CLOSE_RANGE_CLOEXEC;
        libc::syscall(libc::SYS_close_range, FIRST, libc::c_uint::MAX, flags);
    }
}

/// A child ends when this process has it end, or is killed, also where this one itself was started so that it ignores SIGTERM.
#[allow(unsafe_code)]
fn heed_termination() {
    // SAFETY: signal(2) is async-signal-safe, and installs no handler.
    unsafe { libc::signal(libc::SIGTERM, libc::SIG_DFL) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_cut_and_the_next_one_is_whole() {
        let text = [&b"x".repeat(1_000_000)[..], b"\nnext \xff\nlast"].concat();
        let mut text = &text[..];
        let lines: Vec<_> = std::iter::from_fn(|| next_line(&mut text)).collect();
        assert_eq!(lines[0].len(), LONGEST_LINE);
        assert_eq!(lines[1..], ["next \u{fffd}", "last"]);
    }

    #[test]
    fn a_line_of_just_the_longest_length_is_one() {
        let line = "x".repeat(LONGEST_LINE);
        let text = format!("{line}\n{line}");
        let mut text = text.as_bytes();
        assert_eq!(next_line(&mut text), Some(line.clone()));
        assert_eq!(next_line(&mut text), Some(line));
        assert_eq!(next_line(&mut text), None);
    }
}
