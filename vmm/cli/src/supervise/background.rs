//! A supervisor in the background: started by a command, which learns whether the guest runs, and by any command that
//! finds a guest whose supervisor was killed.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, anyhow, bail};
use serde::{Deserialize, Serialize};

use super::child::{Ground, detach};
use super::control::{Responder, Response};
use super::ending::Ending;
use super::messages::Messages;
use super::proc::{self, ProcessId};
use super::signals::Signals;
use super::state::{LastEnd, Reason, RunState, State};
use super::supervisor::{Outcome, Setting, Supervisor};
use crate::guest::{Console, Definition, Plan, Site, Sockets};
use crate::live;
use crate::program::Programs;
use crate::runtime::{self, GuestFolder};

/// What a supervisor is to do; it reads this from standard input.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Task {
    /// Starts a guest.
    Start {
        definition: Box<Definition>,
        persistent: bool,
        helper_socket: Option<PathBuf>,
    },
    /// Adopts the processes of a guest whose supervisor was killed.
    Adopt { name: String },
}

/// What a supervisor reports on standard output, once.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Report {
    /// The guest runs.
    Runs(Box<State>),
    /// It could not be started. `usage`: its definition is wrong.
    Failed { message: String, usage: bool },
}

/// Starts a guest in the background, and returns when it runs.
///
/// # Errors
/// When it cannot be started, or runs already.
pub(crate) fn start(
    definition: Definition,
    persistent: bool,
    helper_socket: Option<PathBuf>,
) -> anyhow::Result<State> {
    let definition = Box::new(definition);
    launch(&Task::Start {
        definition,
        persistent,
        helper_socket,
    })
}

/// Starts a supervisor for a guest whose supervisor was killed, and returns when it has adopted the processes.
///
/// # Errors
/// When it cannot, which may be because another command has done it first.
pub(crate) fn adopt(name: &str) -> anyhow::Result<State> {
    let name = name.to_owned();
    launch(&Task::Adopt { name })
}

fn launch(task: &Task) -> anyhow::Result<State> {
    let own = std::env::current_exe().context("cannot tell which program this is")?;
    let mut command = Command::new(&own);
    command
        .arg(VERB)
        .env_remove("NOTIFY_SOCKET")
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    detach(&mut command);
    let failed = || format!("cannot start {}", own.display());
    let mut child = command.spawn().with_context(failed)?;
    let mut task_pipe = child.stdin.take().context("lost the supervisor")?;
    let mut line = serde_json::to_vec(task)?;
    line.push(b'\n');
    // If it has ended, its report is missing, too.
    let _ = task_pipe.write_all(&line);
    drop(task_pipe);
    let report = child.stdout.take().context("lost the supervisor")?;
    let mut line = String::new();
    BufReader::new(report).read_line(&mut line)?;
    if line.is_empty() {
        let status = child.wait()?;
        bail!("the supervisor of the guest ended before the guest ran ({status})");
    }
    match serde_json::from_str(&line)? {
        Report::Runs(state) => Ok(*state),
        Report::Failed {
            message,
            usage: true,
        } => Err(bulkhead_process::usage(message)),
        Report::Failed { message, .. } => Err(anyhow!(message)),
    }
}

/// The verb by which `bulkhead` starts itself as a supervisor. It is in no list, since nobody types it.
pub(crate) const VERB: &str = "supervise";

/// The main function of a supervisor in the background.
pub(crate) fn main() -> anyhow::Result<ExitCode> {
    let signals = Signals::block().context("cannot watch for signals")?;
    let mut task = String::new();
    io::stdin().take(1 << 20).read_to_string(&mut task)?;
    let outcome = supervise(&task, signals);
    if let Err(error) = &outcome {
        let usage = error
            .chain()
            .any(|cause| cause.is::<bulkhead_process::UsageError>());
        let message = format!("{error:#}");
        report(&Report::Failed { message, usage });
    }
    Ok(ExitCode::from(u8::from(outcome.is_err())))
}

fn supervise(task: &str, signals: Signals) -> anyhow::Result<()> {
    let task = serde_json::from_str(task).context("this is started by other commands only")?;
    let base = runtime::base()?;
    let (folder, state) = match task {
        Task::Start {
            definition,
            persistent,
            helper_socket,
        } => claim(&base, *definition, persistent, helper_socket)?,
        Task::Adopt { name } => inherit(&base, &name)?,
    };
    let adopts = state.supervisor != ProcessId::own();
    let name = state.definition.name.clone();
    let persistent = state.persistent;
    let outcome = run(&base, &folder, state, signals, adopts);
    if persistent {
        let ending = Ending::from(&outcome.0);
        let last = LastEnd {
            state: ending.state,
            reason: ending.reason,
        };
        let _ = last.write(&base, &name);
    }
    drop(folder);
    respond(outcome.1, &outcome.0);
    outcome.0.map(drop)
}

/// Responds to those who ordered the guest's end, now that it has come.
pub(crate) fn respond(waiting: Vec<Responder>, outcome: &anyhow::Result<Outcome>) {
    for waiting in waiting {
        let written = waiting.respond(match outcome {
            Err(error) => Response::Error(format!("{error:#}")),
            Ok(_) => Response::Ok(serde_json::Value::Null),
        });
        let _ = written.recv_timeout(Duration::from_secs(1));
    }
}

/// Reserves the guest's name, unless processes of it run.
fn claim(
    base: &Path,
    definition: Definition,
    persistent: bool,
    helper_socket: Option<PathBuf>,
) -> anyhow::Result<(GuestFolder, State)> {
    let folder = GuestFolder::reserve(&base.join(&definition.name))?;
    if let Ok(Some(before)) = State::read(folder.path())
        && !before.foreground
        && plan(&before, base)?
            .processes
            .iter()
            .any(|it| proc::find(it).is_some())
    {
        folder.leave();
        bail!(
            "guest '{0}' is running already, and its supervisor was killed: 'bulkhead list' starts another",
            definition.name
        );
    }
    folder.clear()?;
    let mut state = State::new(definition, persistent, helper_socket);
    live::register(base, folder.path(), &mut state)?;
    Ok((folder, state))
}

/// Reserves the name of a guest that an earlier supervisor has left.
fn inherit(base: &Path, name: &str) -> anyhow::Result<(GuestFolder, State)> {
    let folder = GuestFolder::reserve(&base.join(name))?;
    let state = State::read(folder.path()).context("the state of the guest")?;
    match state {
        Some(state) => Ok((folder, state)),
        None => bail!("guest '{name}' does not run"),
    }
}

fn plan(state: &State, base: &Path) -> anyhow::Result<Plan> {
    let site = Site {
        programs: &Programs::find(),
        base,
        helper_socket: state.helper_socket.as_deref(),
        may_start_helper: rustix::process::geteuid().is_root(),
        console: Console::Socket,
        sockets: Sockets::Backends,
    };
    Plan::new(&state.definition, &site)
}

fn run(
    base: &Path,
    folder: &GuestFolder,
    state: State,
    signals: Signals,
    adopts: bool,
) -> (anyhow::Result<Outcome>, Vec<Responder>) {
    let prepared = plan(&state, base).and_then(|plan| {
        let logs = runtime::logs(&state.definition.name)?;
        let setting = Setting {
            ground: Ground::Back(folder.path().to_owned()),
            signals,
            terminal: None,
            console_log: Some(logs.join("console.log")),
            messages: Messages::to_file(&logs.join("messages.log"))
                .with_context(|| format!("cannot write into {}", logs.display()))?,
            verbose: true,
        };
        Ok((plan, Supervisor::new(folder, state, setting)?))
    });
    let (plan, mut supervisor) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => {
            if adopts {
                // The guest runs on, and the next command tries again.
                folder.leave();
            }
            return (Err(error), Vec::new());
        }
    };
    supervisor.on_started(|state| report(&Report::Runs(Box::new(state.clone()))));
    let outcome = supervisor.run(&plan, adopts);
    let closed = supervisor.close(Ending::from(&outcome));
    let outcome = outcome.and_then(|outcome| closed.map(|()| outcome));
    (outcome, supervisor.into_waiting())
}

/// Writes the report on standard output, and closes that, so that the command goes on.
fn report(report: &Report) {
    let mut out = io::stdout().lock();
    let Ok(mut line) = serde_json::to_vec(report) else {
        return;
    };
    line.push(b'\n');
    // The command may have been interrupted; the guest runs on.
    let _ = out.write_all(&line).and_then(|()| out.flush());
    drop(out);
    if let Ok(null) = File::options().write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdout(null);
    }
}

impl State {
    /// The state of a guest that this process starts now.
    pub(crate) fn new(
        definition: Definition,
        persistent: bool,
        helper_socket: Option<PathBuf>,
    ) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            id: 0,
            definition,
            persistent,
            foreground: false,
            state: RunState::Starting,
            reason: Reason::Booted,
            started: now.map_or(0, |now| now.as_secs()),
            supervisor: ProcessId::own(),
            processes: Vec::new(),
            helper_socket,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}
