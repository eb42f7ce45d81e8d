//! A running process. A thread waits for its end, and signals go through a pidfd, which never names another process.
//!
//! In the foreground a process ends when the supervisor does. In the background it outlives the supervisor, and the next
//! one adopts it: therefore its standard error is a FIFO with a name, which it holds open in both directions, so that
//! neither a missing reader nor a new one matters to it.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{self, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};

use crossbeam_channel::{Sender, bounded};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::event::{Ended, Event};
use super::messages::Messages;
use crate::guest::{Process, Role};
use crate::terminal::Input;

/// Where the processes of a guest live.
#[derive(Clone)]
pub(crate) enum Ground {
    /// They end with this process, and the monitor has the terminal.
    Fore(Input),
    /// They outlive this process. The FIFOs for their standard error are in this folder.
    Back(PathBuf),
}

/// What all processes of a guest are started with.
pub(crate) struct Surroundings {
    pub(crate) ground: Ground,
    /// The socket for `$NOTIFY_SOCKET`.
    pub(crate) notify: PathBuf,
    pub(crate) messages: Messages,
    pub(crate) events: Sender<Event>,
}

/// A process that has been started.
#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) pid: u32,
    handle: OwnedFd,
    ready: Arc<AtomicBool>,
}

impl Child {
    /// Starts a process. Its end is sent as [`Event::Ended`] with `index`.
    pub(crate) fn start(
        process: &Process,
        index: usize,
        around: &Surroundings,
    ) -> io::Result<Self> {
        let mut command = Command::new(&process.program.path);
        command
            .args(&process.args)
            .env("NOTIFY_SOCKET", &around.notify);
        let messages = set_up(&mut command, process, around)?;
        let ready = Arc::new(AtomicBool::new(false));
        let (name, events, is_ready) = (process.name.clone(), around.events.clone(), ready.clone());
        let log = around.messages.clone();
        let (sender, started) = bounded(1);
        std::thread::Builder::new()
            .name(format!("watch-{name}"))
            .spawn(move || {
                // This is a setting of the thread. Users other than root may not make it: then the child sees other
                // processes.
                let _ = unshare_processes();
                let spawned = command.spawn();
                // The command still has the standard error of the child.
                drop(command);
                let Some(mut child) = started_for(&sender, spawned) else {
                    return;
                };
                let pid = child.id();
                let stderr = child.stderr.take().map(OwnedFd::from).map(File::from);
                let last_line = stderr
                    .or(messages)
                    .and_then(|stderr| listen(stderr, &name, &is_ready, &log));
                let ended = child.wait().map(|status| Ended {
                    status: Some(status),
                    last_line,
                });
                // It fails when the run is over.
                let _ = events.send(Event::Ended(index, pid, ended));
            })?;
        let lost = |_| io::Error::other("lost track of it");
        let (pid, handle, stdin) = started.recv().map_err(lost)??;
        if let (Some(stdin), Ground::Fore(input)) = (stdin, &around.ground) {
            *input.lock().unwrap_or_else(PoisonError::into_inner) = Some(stdin);
        }
        Ok(Self { pid, handle, ready })
    }

    /// Watches a process that an earlier supervisor has started, and that is ready. Its end is sent as
    /// [`Event::Ended`], without a status, which only its parent learns.
    pub(crate) fn adopt(
        process: &Process,
        index: usize,
        pid: Pid,
        around: &Surroundings,
    ) -> io::Result<Self> {
        let handle = pidfd_open(pid, PidfdFlags::empty())?;
        let number = pid.as_raw_nonzero().get().unsigned_abs();
        let end = handle.try_clone()?;
        let ready = Arc::new(AtomicBool::new(true));
        let (name, events, is_ready) = (process.name.clone(), around.events.clone(), ready.clone());
        let messages = match &around.ground {
            Ground::Back(folder) => Some(fifo(folder, &name)?.reader()?),
            Ground::Fore(_) => None,
        };
        let log = around.messages.clone();
        std::thread::Builder::new()
            .name(format!("watch-{name}"))
            .spawn(move || {
                if let Some(messages) = messages {
                    listen(messages, &name, &is_ready, &log);
                }
                let ended = wait_for_end(&end).map(|()| Ended {
                    status: None,
                    last_line: None,
                });
                let _ = events.send(Event::Ended(index, number, ended));
            })?;
        Ok(Self {
            pid: number,
            handle,
            ready,
        })
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    pub(crate) fn set_ready(&self) {
        self.ready.store(true, Ordering::Relaxed);
    }

    /// Sends a signal, which fails only when the process has ended.
    pub(crate) fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(&self.handle, signal);
    }
}

/// Sets the standard streams of a process and how it ends. Returns the reader of its FIFO in the background.
fn set_up(
    command: &mut Command,
    process: &Process,
    around: &Surroundings,
) -> io::Result<Option<File>> {
    match &around.ground {
        Ground::Fore(_) => {
            let monitor = process.role == Role::Monitor;
            command
                // Ctrl-C reaches only this process, which ends the others in order.
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
            end_with_parent(command);
            Ok(None)
        }
        Ground::Back(folder) => {
            let fifo = fifo(folder, &process.name)?;
            let reader = fifo.reader()?;
            command
                .current_dir("/")
                .stdin(null()?)
                .stdout(null()?)
                .stderr(fifo.file);
            outlive_parent(command);
            Ok(Some(reader))
        }
    }
}

/// A FIFO that is open in both directions, so that opening and writing wait for nobody.
struct Fifo {
    path: PathBuf,
    file: File,
}

/// Opens, and makes if it is missing, the FIFO for the messages of a process.
fn fifo(folder: &Path, name: &str) -> io::Result<Fifo> {
    let path = folder.join(format!("{name}.{FIFO}"));
    match rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::from(0o600)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let file = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(&path)?;
    rustix::fs::fcntl_setfl(&file, rustix::fs::OFlags::empty())?;
    Ok(Fifo { path, file })
}

/// The ending of the FIFOs' names.
pub(crate) const FIFO: &str = "messages";

impl Fifo {
    /// Opens it once more for reading, which comes to its end when the last process that writes has ended.
    fn reader(&self) -> io::Result<File> {
        File::options()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&self.path)
    }
}

fn wait_for_end(handle: &OwnedFd) -> io::Result<()> {
    loop {
        let mut fds = [PollFd::new(handle, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Standard input or output of a process that needs none. It is opened here because an error of the standard library
/// would not name it.
fn null() -> io::Result<Stdio> {
    const NULL: &str = "/dev/null";
    let opened = File::options().read(true).write(true).open(NULL);
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{NULL}: {error}"));
    opened.map(Stdio::from).map_err(named)
}

/// The process id, the pidfd and the standard input of a process.
type Started = (u32, OwnedFd, Option<ChildStdin>);

/// Sends the supervisor its part of a started process.
fn started_for(
    supervisor: &Sender<io::Result<Started>>,
    spawned: io::Result<process::Child>,
) -> Option<process::Child> {
    let parts = spawned.and_then(|mut child| {
        // The process id of a child is not used again until it is waited for.
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

/// The number of bytes of a line that are passed on.
const LONGEST_LINE: usize = 1024;

/// Passes on the lines that a process writes to standard error. Returns the last one before it was ready, which says
/// why it ended.
pub(super) fn listen(
    stderr: File,
    name: &str,
    ready: &AtomicBool,
    messages: &Messages,
) -> Option<String> {
    let mut last = None;
    let mut stderr = BufReader::new(stderr);
    while let Some(line) = next_line(&mut stderr) {
        let error = line.strip_prefix("error: ");
        if !ready.load(Ordering::Relaxed) {
            last = Some(error.unwrap_or(&line).to_owned());
            continue;
        }
        let words = line.strip_prefix("warning: ").or(error).unwrap_or(&line);
        messages.warn(&format!("{name}: {words}"));
    }
    last
}

/// The next line, cut to the longest length. A process that was taken over may write anything, of any length.
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

/// Has the child end when this process is killed.
#[allow(unsafe_code)]
fn end_with_parent(command: &mut Command) {
    let parent = rustix::process::getpid();
    let arrange = move || {
        // The first process of a namespace gets SIGTERM only once it handles it, so it stays blocked until then.
        begin(Some(libc::SIGTERM));
        restore_sigterm();
        rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
        // The parent may have been killed before that. (In a namespace of its own, a child cannot see it.)
        if rustix::process::getppid().is_some_and(|now| now != parent) {
            return Err(rustix::io::Errno::OWNERDEAD.into());
        }
        Ok(())
    };
    // SAFETY: between fork and exec only system calls are made; nothing is allocated and no lock is taken. Needed
    // because the standard library has no safe way to do this for a child.
    unsafe { command.pre_exec(arrange) };
}

/// Has the child outlive this process, in a session of its own.
#[allow(unsafe_code)]
fn outlive_parent(command: &mut Command) {
    let arrange = || {
        // As for `end_with_parent`.
        begin(Some(libc::SIGTERM));
        restore_sigterm();
        rustix::process::setsid()?;
        Ok(())
    };
    // SAFETY: as in `end_with_parent`.
    unsafe { command.pre_exec(arrange) };
}

/// Has the child begin with no signal blocked, as a program begins that a shell starts.
#[allow(unsafe_code)]
pub(crate) fn block_nothing(command: &mut Command) {
    let arrange = || {
        begin(None);
        Ok(())
    };
    // SAFETY: as in `end_with_parent`.
    unsafe { command.pre_exec(arrange) };
}

/// Puts the child into a session of its own, so that it gets no signal of this terminal and outlives this process.
#[allow(unsafe_code)]
pub(crate) fn detach(command: &mut Command) {
    let arrange = || {
        begin(None);
        rustix::process::setsid()?;
        Ok(())
    };
    // SAFETY: as in `end_with_parent`.
    unsafe { command.pre_exec(arrange) };
}

/// Puts the next child of this thread into a process namespace of its own: it sees and signals no other process, and
/// all that it starts ends with it.
#[allow(unsafe_code)]
fn unshare_processes() -> io::Result<()> {
    // SAFETY: it changes only what the next fork of this thread does. (rustix's function is unsafe, too.)
    match unsafe { libc::unshare(libc::CLONE_NEWPID) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sets the child's signal mask, in which `blocked` alone may be, since this process blocks the signals that it reads
/// by a descriptor. The child gets no descriptors but standard input, output and error.
#[allow(unsafe_code)]
fn begin(blocked: Option<libc::c_int>) {
    const FIRST: libc::c_uint = 3;
    // SAFETY: the set is initialised by sigemptyset before it is read. The calls are async-signal-safe and access no
    // memory but the set. A kernel without close_range(2) (before 5.11) leaves the descriptors open.
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

/// Has SIGTERM end the child even if this process was started with SIGTERM ignored.
#[allow(unsafe_code)]
fn restore_sigterm() {
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
