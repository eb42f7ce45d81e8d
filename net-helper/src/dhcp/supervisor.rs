//! The supervisor of a dnsmasq: it starts init, and starts it again when it ends.
//!
//! The helper cannot start programs once it is confined. So it starts this process before, which then waits for
//! [`pipe::START`]. Init is the first process of a PID namespace: when the supervisor dies, the kernel kills init, and
//! when init dies, by whatever signal, the kernel kills dnsmasq. A second supervisor, the standby, waits for the death
//! of the first and takes over then. Both stop when the helper's end of their standard input closes, which the kernel
//! does for a helper that is killed.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use bulkhead_process::signals;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, getppid, pidfd_open, pidfd_send_signal};

use super::lock::LockFile;
use super::namespaces::Namespaces;
use super::params::{Params, Role, invalid, number};
use super::pipe::{self, INIT_STOP_TIMEOUT, poll_readable, read_command};
use super::{privileges, seccomp};

/// How long to wait before init is started again. The time doubles with each start after which dnsmasq does not come to
/// listen.
const MIN_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// Runs the supervisor; its argument is the path of the lock file.
pub(super) fn run(args: &[OsString]) -> io::Result<()> {
    let [lock] = args else {
        return Err(invalid());
    };
    // The helper has blocked SIGTERM, SIGINT and SIGHUP, and programs inherit the signal mask; dnsmasq must stop by
    // SIGTERM.
    signals::unblock_termination();
    if read_command()?.is_none() {
        return Ok(());
    }
    let lock = LockFile::open(Path::new(lock))?;
    let args = lock.read_params()?;
    let params = Params::parse(&args)?;
    if !lock.lock()? {
        return Ok(());
    }
    let (namespaces, missing) = Namespaces::enter(&params)?;
    if let Some(missing) = missing {
        let consequence = match namespaces.is_isolated() {
            true => "",
            false => ": it sees the host's files, and stays if its init is killed",
        };
        let mut stdout = io::stdout();
        writeln!(
            stdout,
            "{}this host does not allow all of dnsmasq's confinement ({missing}){consequence}",
            pipe::WARNING
        )?;
    }
    Supervisor::new(lock, params, namespaces, false)?.run()
}

/// Runs the standby; its arguments are the lock file's descriptor, the process number of the supervisor, and whether
/// that has namespaces.
pub(super) fn run_standby(args: &[OsString]) -> io::Result<()> {
    let [lock, parent, isolated] = args else {
        return Err(invalid());
    };
    let (lock, parent) = (number(lock)?, number(parent)?);
    let parent = Pid::from_raw(parent).ok_or_else(invalid)?;
    let lock = LockFile::inherited(lock)?;
    let args = lock.read_params()?;
    let params = Params::parse(&args)?;
    let namespaces = Namespaces::inherit(isolated == "true")?;
    let supervisor = Supervisor::new(lock, params, namespaces, true)?;
    // By the time the process file is open, the parent may have died and its number be another's; then this process has
    // another parent.
    match pidfd_open(parent, PidfdFlags::empty()) {
        Ok(first) if getppid() == Some(parent) && !helper_outlives(&first)? => Ok(()),
        _ => supervisor.run(),
    }
}

/// Waits until the first supervisor or the helper is dead. Returns whether the helper is alive.
fn helper_outlives(first: &OwnedFd) -> io::Result<bool> {
    let stdin = io::stdin();
    loop {
        // Commands on standard input are for the first supervisor; only its closing, POLLHUP, is for the standby as
        // well.
        let mut fds = [
            PollFd::new(&stdin, PollFlags::empty()),
            PollFd::new(first, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
            Ok(_) => return Ok(fds.first().is_some_and(|fd| fd.revents().is_empty())),
        }
    }
}

struct Supervisor<'a> {
    lock: LockFile,
    params: Params<'a>,
    namespaces: Namespaces,
    /// Whether dnsmasq has listened once. From then on it is started again whenever it ends, and there is a standby.
    has_served: bool,
    backoff: Duration,
}

/// Init, as its supervisor sees it.
struct Init {
    process: Child,
    /// Init stops when this closes.
    stdin: Option<ChildStdin>,
    reports: ChildStdout,
}

/// Why [`Supervisor::watch`] has returned.
enum Event {
    /// The helper has closed the pipe: stop.
    Stop,
    /// The helper has sent [`pipe::RESTART`].
    Restart,
    /// Init has ended.
    InitEnded,
}

impl<'a> Supervisor<'a> {
    fn new(
        lock: LockFile,
        params: Params<'a>,
        namespaces: Namespaces,
        has_served: bool,
    ) -> io::Result<Self> {
        privileges::reduce(privileges::SUPERVISOR)?;
        seccomp::confine_supervisor()?;
        Ok(Supervisor {
            lock,
            params,
            namespaces,
            has_served,
            backoff: MIN_BACKOFF,
        })
    }

    fn run(mut self) -> io::Result<()> {
        let mut standby = None;
        loop {
            self.wait_for_previous_init()?;
            let mut init = self.start_init()?;
            let event = self.watch(&mut init, &mut standby)?;
            init.stop()?;
            match event {
                Event::Stop => return Ok(()),
                Event::Restart => continue,
                // Init has reported why, or was killed.
                Event::InitEnded if !self.has_served => return Ok(()),
                Event::InitEnded => {}
            }
            let stdin = io::stdin();
            let has_command = poll_readable([stdin.as_fd()], Some(self.backoff))? == [true];
            if has_command && read_command()?.is_none() {
                return Ok(());
            }
            self.backoff = (self.backoff * 2).min(MAX_BACKOFF);
        }
    }

    /// Waits for the end of the init of a supervisor that was killed, which the kernel kills then. A process has ended
    /// when all processes of the PID namespace that it is the init of have. Another process may have the number by now,
    /// so there is a timeout.
    fn wait_for_previous_init(&self) -> io::Result<()> {
        let Some(pid) = self.lock.read_init_pid()? else {
            return Ok(());
        };
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(process) => poll_readable([process.as_fd()], Some(INIT_STOP_TIMEOUT)).map(drop),
            Err(_) => Ok(()),
        }
    }

    fn start_init(&mut self) -> io::Result<Init> {
        self.namespaces.enter_for_init()?;
        let mut process = Command::new(self.params.program)
            .arg0("bulkhead-net-helper")
            .arg(Role::Init.flag())
            .args(self.params.args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        self.namespaces.leave_after_init()?;
        self.lock.write_init_pid(process.id())?;
        match (process.stdin.take(), process.stdout.take()) {
            (stdin @ Some(_), Some(reports)) => Ok(Init {
                process,
                stdin,
                reports,
            }),
            _ => Err(invalid()),
        }
    }

    /// Passes init's reports on to the helper, and starts the standby and starts it again when it dies. Returns when
    /// init ends or is to be stopped.
    fn watch(&mut self, init: &mut Init, standby: &mut Option<Child>) -> io::Result<Event> {
        loop {
            if self.has_served && standby.is_none() {
                *standby = Some(self.start_standby()?);
            }
            let other = standby.as_ref().map(pidfd).transpose()?;
            let stdin = io::stdin();
            let reports = init.reports.as_fd();
            let [has_command, has_report, standby_is_dead] = match &other {
                Some(other) => poll_readable([stdin.as_fd(), reports, other.as_fd()], None)?,
                None => {
                    let [command, report] = poll_readable([stdin.as_fd(), reports], None)?;
                    [command, report, false]
                }
            };
            if has_command {
                return Ok(match read_command()? {
                    Some(pipe::RESTART) => Event::Restart,
                    Some(_) => continue,
                    None => Event::Stop,
                });
            }
            if standby_is_dead && let Some(mut dead) = standby.take() {
                dead.wait()?;
                std::thread::sleep(MIN_BACKOFF);
            }
            if has_report && !self.pass_on_report(init)? {
                return Ok(Event::InitEnded);
            }
        }
    }

    /// Returns false when init has closed the pipe.
    fn pass_on_report(&mut self, init: &mut Init) -> io::Result<bool> {
        let mut bytes = [0; 1024];
        let length = init.reports.read(&mut bytes)?;
        let bytes = bytes.get(..length).unwrap_or_default();
        if bytes.is_empty() {
            return Ok(false);
        }
        if bytes == pipe::READY.as_bytes() {
            self.has_served = true;
            self.backoff = MIN_BACKOFF;
        }
        io::stdout().write_all(bytes)?;
        io::stdout().flush()?;
        Ok(true)
    }

    /// Starts the standby, with the same pipes to the helper and the same lock.
    fn start_standby(&self) -> io::Result<Child> {
        self.lock.while_inheritable(|lock| {
            Command::new(self.params.program)
                .arg0("bulkhead-net-helper")
                .arg(Role::Standby.flag())
                .arg(lock.to_string())
                .arg(std::process::id().to_string())
                .arg(self.namespaces.is_isolated().to_string())
                .stderr(Stdio::null())
                .spawn()
        })?
    }
}

impl Init {
    /// Stops init, and waits until it and dnsmasq have ended.
    fn stop(&mut self) -> io::Result<()> {
        drop(self.stdin.take());
        let process = pidfd(&self.process)?;
        if poll_readable([process.as_fd()], Some(INIT_STOP_TIMEOUT))? == [false] {
            privileges::with_raised(|| Ok(pidfd_send_signal(&process, Signal::KILL)?))?;
        }
        self.process.wait().map(drop)
    }
}

fn pidfd(child: &Child) -> io::Result<OwnedFd> {
    Ok(pidfd_open(Pid::from_child(child), PidfdFlags::empty())?)
}
