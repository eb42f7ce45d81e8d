//! The launcher: a process that starts the keeper of a dnsmasq, and again when it ends.
//!
//! The helper cannot start programs once it is confined. So, before that, it starts this one, which waits for the helper's word. The
//! keeper is the first process of a PID namespace: the kernel ends dnsmasq when the keeper dies, whatever has killed it, and the keeper
//! when the launcher dies. A second launcher, the standby, waits for the death of the first and does its work then. Both end when the
//! helper's end of their standard input closes, which the kernel does for a helper that is killed.

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, flock};
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::process::{Pid, PidfdFlags, Signal, getppid, pidfd_open, pidfd_send_signal};

use super::namespaces::Namespaces;
use super::{Kept, calls, invalid, keeper, privileges};
use crate::bridge_helper::inherited;
use crate::state::open_regular;

/// The first argument that makes this program a launcher; then the lock. The command lines of launchers do not name dnsmasq: `pkill -f` of that
/// name ends dnsmasq and its keeper, and not what starts them again.
pub(crate) const FLAG: &str = "--launch-dhcp";
/// The first argument of the launcher that waits for the death of another; then the lock as a descriptor, that launcher, and whether it has
/// namespaces of its own.
pub(crate) const STANDBY_FLAG: &str = "--launch-dhcp-standby";
/// What the helper says: to begin, and to start dnsmasq anew for a bridge that is made anew.
pub(crate) const GO: u8 = b'g';
pub(crate) const AGAIN: u8 = b'a';

/// What a report begins with that is no failure.
pub(crate) const WARNING: &str = "warning: ";

/// How soon after its end the keeper is started again; longer each time that dnsmasq does not get going.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How long the keeper gets to end in order.
const PATIENCE: Duration = Duration::from_secs(4);

/// How long the lock may be another's, and how often we look.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// What the lock has in it: the number of the keeper, in that many bytes, and the words of [`Kept`] with a zero between them.
const KEEPER: usize = 16;

/// Writes down what a launcher is to start, in what will be its lock. The keeper's number stays: that of a helper that was killed may still be
/// ending.
pub(super) fn prepare(lock: &Path, words: &[OsString]) -> io::Result<()> {
    let words: Vec<_> = words.iter().map(|word| word.as_bytes()).collect();
    let words = words.join(&0);
    let lock = open(lock)?;
    lock.write_all_at(&words, KEEPER as u64)?;
    lock.set_len((KEEPER + words.len()) as u64)
}

fn open(lock: impl AsRef<Path>) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    open_regular(lock.as_ref(), options.mode(0o600))
}

/// The keeper's number as it stands there, and the words. Launchers share the file's position, and do not use it.
fn read(lock: &File) -> io::Result<(String, Vec<OsString>)> {
    let mut bytes = vec![0; usize::try_from(lock.metadata()?.len()).unwrap_or(0)];
    lock.read_exact_at(&mut bytes, 0)?;
    let (keeper, words) = bytes.split_at_checked(KEEPER).ok_or_else(invalid)?;
    let words = words.split(|&byte| byte == 0);
    Ok((
        String::from_utf8_lossy(keeper).into_owned(),
        words
            .map(|word| OsStr::from_bytes(word).to_owned())
            .collect(),
    ))
}

/// Runs the launcher.
pub(crate) fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    finish(first(&args.collect::<Vec<_>>()))
}

/// Runs the standby.
pub(crate) fn standby_main(args: impl Iterator<Item = OsString>) -> ExitCode {
    finish(second(&args.collect::<Vec<_>>()))
}

fn finish(result: io::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stdout(), "{error}");
            ExitCode::FAILURE
        }
    }
}

fn first(args: &[OsString]) -> io::Result<()> {
    let [lock] = args else {
        return Err(invalid());
    };
    if told()?.is_none() {
        return Ok(());
    }
    let lock = open(lock)?;
    let words = read(&lock)?.1;
    let kept = Kept::parse(&words).ok_or_else(invalid)?;
    if !take(&lock)? {
        return Ok(());
    }
    let (namespaces, missing) = Namespaces::enter(&kept)?;
    if let Some(missing) = missing {
        let loss = match namespaces.is_isolated() {
            true => "",
            false => ": it sees the host's files, and stays if its keeper is killed",
        };
        let mut stdout = io::stdout();
        writeln!(
            stdout,
            "{WARNING}this host does not allow all of dnsmasq's confinement ({missing}){loss}"
        )?;
    }
    Launcher::new(lock, kept, namespaces, false)?.run()
}

/// Takes the lock, which a launcher of a helper that was killed holds until it has ended; whether the helper lives.
fn take(lock: &File) -> io::Result<bool> {
    let until = Instant::now() + LOCK_PATIENCE;
    let stdin = io::stdin();
    loop {
        match flock(lock, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK | Errno::INTR) => {}
            taken => return Ok(taken.map(|()| true)?),
        }
        if Instant::now() > until {
            return Err(io::Error::other(
                "another process has had its lock for 10 s: a launcher before it may be stopped",
            ));
        }
        if ready([stdin.as_fd()], Some(LOCK_PAUSE))? == [true] && told()?.is_none() {
            return Ok(false);
        }
    }
}

fn second(args: &[OsString]) -> io::Result<()> {
    let [lock, parent, isolated] = args else {
        return Err(invalid());
    };
    let (Some(lock), Some(parent)) = (number(lock), number(parent).and_then(Pid::from_raw)) else {
        return Err(invalid());
    };
    let lock = File::from(inherited(lock)?);
    let words = read(&lock)?.1;
    let kept = Kept::parse(&words).ok_or_else(invalid)?;
    let namespaces = Namespaces::inherit(isolated == "true")?;
    let launcher = Launcher::new(lock, kept, namespaces, true)?;
    let other = pidfd_open(parent, PidfdFlags::empty());
    match other {
        Ok(other) if getppid() == Some(parent) && !outlives(&other)? => Ok(()),
        _ => launcher.run(),
    }
}

/// Waits until the other launcher is dead, or the helper: whether the helper lives.
fn outlives(other: &OwnedFd) -> io::Result<bool> {
    let stdin = io::stdin();
    loop {
        // What the helper says is for the other; that it has gone is for both.
        let mut fds = [
            PollFd::new(&stdin, PollFlags::empty()),
            PollFd::new(other, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
            Ok(_) => return Ok(fds.first().is_some_and(|fd| fd.revents().is_empty())),
        }
    }
}

/// Why the keeper is not attended to any more.
enum Ended {
    /// The helper wants all of it to end.
    Ordered,
    /// The helper wants it anew.
    Again,
    ByItself,
}

struct Launcher<'a> {
    /// Held as long as there is a launcher; it names the keeper, for a launcher after this one.
    lock: File,
    kept: Kept<'a>,
    namespaces: Namespaces,
    /// dnsmasq has served: from then on it is started again, and there is a standby.
    has_served: bool,
    pause: Duration,
}

struct Keeper {
    process: Child,
    orders: Option<ChildStdin>,
    reports: ChildStdout,
}

impl<'a> Launcher<'a> {
    fn new(
        lock: File,
        kept: Kept<'a>,
        namespaces: Namespaces,
        has_served: bool,
    ) -> io::Result<Self> {
        privileges::reduce(privileges::LAUNCHER)?;
        calls::confine_launcher()?;
        Ok(Launcher {
            lock,
            kept,
            namespaces,
            has_served,
            pause: FIRST_PAUSE,
        })
    }

    fn run(mut self) -> io::Result<()> {
        let mut standby = None;
        loop {
            wait_for_leftover(&self.lock)?;
            let mut keeper = self.start()?;
            let ended = self.attend(&mut keeper, &mut standby)?;
            keeper.end()?;
            match ended {
                Ended::Ordered => return Ok(()),
                Ended::Again => continue,
                // It has said why, or was killed.
                Ended::ByItself if !self.has_served => return Ok(()),
                Ended::ByItself => {}
            }
            let stdin = io::stdin();
            if ready([stdin.as_fd()], Some(self.pause))? == [true] && told()?.is_none() {
                return Ok(());
            }
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn start(&mut self) -> io::Result<Keeper> {
        self.namespaces.begin_keeper()?;
        let mut process = Command::new(self.kept.program)
            .arg0("bulkhead-net-helper")
            .arg(keeper::FLAG)
            .args(self.kept.words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        self.namespaces.end_keeper()?;
        let number = format!("{:<KEEPER$}", process.id());
        self.lock.write_all_at(number.as_bytes(), 0)?;
        match (process.stdin.take(), process.stdout.take()) {
            (orders @ Some(_), Some(reports)) => Ok(Keeper {
                process,
                orders,
                reports,
            }),
            _ => Err(invalid()),
        }
    }

    /// Passes on what the keeper reports, until it ends or is to end; and sees to it that there is a standby.
    fn attend(&mut self, keeper: &mut Keeper, standby: &mut Option<Child>) -> io::Result<Ended> {
        loop {
            if self.has_served && standby.is_none() {
                *standby = Some(self.start_standby()?);
            }
            let other = standby.as_ref().map(process).transpose()?;
            let stdin = io::stdin();
            let reports = keeper.reports.as_fd();
            let [word, report, death] = match &other {
                Some(other) => ready([stdin.as_fd(), reports, other.as_fd()], None)?,
                None => {
                    let [word, report] = ready([stdin.as_fd(), reports], None)?;
                    [word, report, false]
                }
            };
            if word {
                return Ok(match told()? {
                    Some(AGAIN) => Ended::Again,
                    Some(_) => continue,
                    None => Ended::Ordered,
                });
            }
            if death && let Some(mut dead) = standby.take() {
                dead.wait()?;
                std::thread::sleep(FIRST_PAUSE);
            }
            if report {
                let mut bytes = [0; 1024];
                let length = keeper.reports.read(&mut bytes)?;
                let bytes = bytes.get(..length).unwrap_or_default();
                if bytes.is_empty() {
                    return Ok(Ended::ByItself);
                }
                if bytes == keeper::READY.as_bytes() {
                    self.has_served = true;
                    self.pause = FIRST_PAUSE;
                }
                io::stdout().write_all(bytes)?;
                io::stdout().flush()?;
            }
        }
    }

    /// Starts another launcher, with the same pipes to the helper and the same lock.
    fn start_standby(&self) -> io::Result<Child> {
        fcntl_setfd(&self.lock, FdFlags::empty())?;
        let started = Command::new(self.kept.program)
            .arg0("bulkhead-net-helper")
            .arg(STANDBY_FLAG)
            .arg(self.lock.as_raw_fd().to_string())
            .arg(std::process::id().to_string())
            .arg(self.namespaces.is_isolated().to_string())
            .stderr(Stdio::null())
            .spawn();
        fcntl_setfd(&self.lock, FdFlags::CLOEXEC)?;
        started
    }
}

impl Keeper {
    /// Ends it, and waits until it and dnsmasq have ended.
    fn end(&mut self) -> io::Result<()> {
        drop(self.orders.take());
        let process = process(&self.process)?;
        if ready([process.as_fd()], Some(PATIENCE))? == [false] {
            privileges::with_raised(|| Ok(pidfd_send_signal(&process, Signal::KILL)?))?;
        }
        self.process.wait().map(drop)
    }
}

fn process(child: &Child) -> io::Result<OwnedFd> {
    Ok(pidfd_open(Pid::from_child(child), PidfdFlags::empty())?)
}

/// What the helper says; nothing when it has gone.
fn told() -> io::Result<Option<u8>> {
    let mut word = [0];
    let stdin = io::stdin();
    match rustix::io::retry_on_intr(|| rustix::io::read(&stdin, &mut word))? {
        0 => Ok(None),
        _ => Ok(word.first().copied()),
    }
}

/// Waits for the end of the keeper of a launcher that was killed. The kernel has killed it with its launcher, and a process has ended
/// once all of the PID namespace that it is the first of has. Should another process have its number by now, the time is limited.
fn wait_for_leftover(lock: &File) -> io::Result<()> {
    let keeper = read(lock)?.0;
    let Some(pid) = keeper
        .trim_matches(['\0', ' '])
        .parse()
        .ok()
        .and_then(Pid::from_raw)
    else {
        return Ok(());
    };
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(process) => ready([process.as_fd()], Some(PATIENCE)).map(drop),
        Err(_) => Ok(()),
    }
}

fn number<T: std::str::FromStr>(text: &OsString) -> Option<T> {
    text.to_str().and_then(|text| text.parse().ok())
}

/// Which of the descriptors have something to say, or have closed.
pub(super) fn ready<const N: usize>(
    fds: [BorrowedFd<'_>; N],
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
