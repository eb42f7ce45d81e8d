//! The main thread of a supervisor: starts the processes of a guest, starts a backend that dies again, carries out what
//! clients order. How it ends all processes is in [`end`].

mod end;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bulkhead_process::listen::SocketFile;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use rustix::process::Signal;

use super::child::{Child, Ground, Surroundings};
use super::console::Hub;
use super::control::{self, Change, Order, Responder, Response, Subscriber};
use super::ending::{Ending, RESET, monitor_ended};
use super::event::{Ended, Event, Helper as HelperNews};
use super::helper::Helper;
use super::messages::Messages;
use super::proc::{self, ProcessId};
use super::ready;
use super::restarts::Restarts;
use super::signals::Signals;
use super::state::{ProcessState, Reason, RunState, State};
use crate::guest::{Action, EVENTS, Plan, Process, Role};
use crate::runtime::GuestFolder;
use crate::terminal::Terminal;

/// How long clients may take to receive the last change.
const REPORTING: Duration = Duration::from_secs(1);

/// Why a guest is over.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The monitor ended with this status.
    Ended(i32),
    /// A signal ended the supervisor.
    Stopped,
    /// A client ended the guest, and waits for the response.
    Destroyed,
}

/// What a supervisor is started with.
pub(crate) struct Setting {
    pub(crate) ground: Ground,
    pub(crate) signals: Signals,
    pub(crate) terminal: Option<Terminal>,
    pub(crate) console_log: Option<PathBuf>,
    pub(crate) messages: Messages,
    /// Whether each process's end is reported.
    pub(crate) verbose: bool,
}

/// What is called with the state of a guest that runs.
type OnStarted = Box<dyn FnOnce(&State)>;

/// A process of the plan and its state.
struct Slot {
    process: Process,
    child: Option<Child>,
    was_ready: bool,
    restarts: Restarts,
    restart_at: Option<Instant>,
}

/// Runs a guest.
pub(crate) struct Supervisor<'a> {
    folder: &'a GuestFolder,
    state: State,
    events: Receiver<Event>,
    sender: Sender<Event>,
    around: Surroundings,
    console: Option<Hub>,
    verbose: bool,
    slots: Vec<Slot>,
    /// The network helper, from the first guest that needs it to the end of the run.
    helper: Option<Helper>,
    helper_held: bool,
    helper_was_held: bool,
    /// The last warning about its absence, so that none is written twice.
    helper_missed: Option<String>,
    restart_when_off: bool,
    subscribers: Vec<Subscriber>,
    /// Those who ordered the end, which they learn of when it has come.
    waiting: Vec<Responder>,
    /// Called when the guest runs for the first time.
    on_started: Option<OnStarted>,
    _control: SocketFile,
}

impl<'a> Supervisor<'a> {
    /// Prepares to run the guest of this `state` in `folder`.
    pub(crate) fn new(
        folder: &'a GuestFolder,
        state: State,
        setting: Setting,
    ) -> anyhow::Result<Self> {
        let (sender, events) = unbounded();
        let path = folder.path();
        let listens = || format!("cannot listen in {}", path.display());
        let notify = ready::listen(path, sender.clone()).with_context(listens)?;
        setting
            .signals
            .serve(setting.terminal, sender.clone())
            .context("cannot watch for signals")?;
        let console = match &setting.ground {
            Ground::Fore(_) => None,
            Ground::Back(_) => {
                let goes_on = state.supervisor != ProcessId::own();
                let hub = Hub::start(setting.console_log.as_deref(), goes_on);
                Some(hub.context("cannot start a thread")?)
            }
        };
        let control =
            control::serve(path, sender.clone(), console.clone()).with_context(listens)?;
        Ok(Self {
            folder,
            state: State {
                supervisor: ProcessId::own(),
                ..state
            },
            events,
            around: Surroundings {
                ground: setting.ground,
                notify,
                messages: setting.messages,
                events: sender.clone(),
            },
            sender,
            console,
            verbose: setting.verbose,
            slots: Vec::new(),
            helper: None,
            helper_held: false,
            helper_was_held: false,
            helper_missed: None,
            restart_when_off: false,
            subscribers: Vec::new(),
            waiting: Vec::new(),
            on_started: None,
            _control: control,
        })
    }

    /// Has `then` called when the guest runs for the first time.
    pub(crate) fn on_started(&mut self, then: impl FnOnce(&State) + 'static) {
        self.on_started = Some(Box::new(then));
    }

    /// Runs the guest until it is over, and starts it again as its definition and clients want. All processes have ended
    /// when this returns. `adopt`: those that run already are its processes.
    pub(crate) fn run(&mut self, plan: &Plan, adopt: bool) -> anyhow::Result<Outcome> {
        let mut adopts = adopt;
        loop {
            let outcome = self.run_once(plan.clone(), adopts)?;
            adopts = false;
            if !self.starts_again(&outcome) {
                return Ok(outcome);
            }
        }
    }

    fn starts_again(&mut self, outcome: &Outcome) -> bool {
        let definition = &self.state.definition;
        let action = match outcome {
            Outcome::Ended(0) if std::mem::take(&mut self.restart_when_off) => Action::Restart,
            Outcome::Ended(0) => definition.on_poweroff,
            Outcome::Ended(RESET) => definition.on_reboot,
            Outcome::Ended(_) => definition.on_crash,
            Outcome::Stopped | Outcome::Destroyed => Action::Destroy,
        };
        action == Action::Restart
    }

    /// Releases the helper and the console, after the last run of the guest, and notes how it ended.
    pub(crate) fn close(&mut self, ending: Ending) -> anyhow::Result<()> {
        // The state is not written, since the guest's folder is removed next.
        self.report(ending.state, ending.reason);
        let deadline = Instant::now() + REPORTING;
        for Subscriber { changes, written } in self.subscribers.drain(..) {
            drop(changes);
            let _ = written.recv_deadline(deadline);
        }
        if let Some(console) = self.console.take() {
            console.finish();
        }
        self.helper.take().map_or(Ok(()), Helper::release)
    }

    /// Those who wait for the guest's end. They get their response when the guest's folder is gone.
    pub(crate) fn into_waiting(self) -> Vec<Responder> {
        self.waiting
    }

    fn run_once(&mut self, plan: Plan, adopt: bool) -> anyhow::Result<Outcome> {
        if let (Some(wanted), None) = (plan.helper, &self.helper) {
            let messages = self.around.messages.clone();
            let helper = Helper::need(wanted, self.verbose, messages, self.sender.clone());
            self.helper = Some(helper.context("cannot watch bulkhead-net-helper")?);
        }
        let processes = plan.processes.into_iter();
        self.slots = processes.map(Slot::new).collect();
        match adopt {
            true => self.adopt_all()?,
            false => {
                // The events of the run before are not those of this one.
                let _ = std::fs::remove_file(self.folder.path().join(EVENTS));
                self.change(RunState::Starting, Reason::Booted)?;
            }
        }
        let outcome = self.watch();
        let ended = self.end(&outcome);
        outcome.and_then(|outcome| ended.map(|()| outcome))
    }

    /// Adopts the processes that an earlier supervisor has started.
    fn adopt_all(&mut self) -> anyhow::Result<()> {
        for (index, slot) in self.slots.iter_mut().enumerate() {
            // An earlier supervisor has had it ready, or has just started it.
            slot.was_ready = true;
            let Some(pid) = proc::find(&slot.process) else {
                continue;
            };
            let adopted = Child::adopt(&slot.process, index, pid, &self.around);
            slot.child =
                Some(adopted.with_context(|| format!("cannot watch {}", slot.process.name))?);
        }
        let monitor = self.slots.iter().find(|slot| slot.is_monitor());
        if monitor.is_some_and(|monitor| monitor.child.is_some()) {
            self.monitor_runs();
        } else {
            // It has ended meanwhile, and the supervisor that was killed has not seen how.
            let ended = Ended {
                status: None,
                last_line: None,
            };
            let index = self.slots.len().saturating_sub(1);
            let _ = self.sender.send(Event::Ended(index, 0, Ok(ended)));
        }
        self.note()?;
        self.report_start();
        Ok(())
    }

    fn watch(&mut self) -> anyhow::Result<Outcome> {
        loop {
            self.start_what_can_be()?;
            let event = match self.next_restart() {
                Some(when) => match self.events.recv_deadline(when) {
                    Ok(event) => event,
                    Err(RecvTimeoutError::Timeout) => continue,
                    Err(RecvTimeoutError::Disconnected) => bail!("lost track of the processes"),
                },
                None => self.events.recv()?,
            };
            match event {
                Event::Stop => return Ok(Outcome::Stopped),
                Event::Ready(pid) => self.ready(pid)?,
                Event::Helper(news) => self.helper_news(news)?,
                Event::Changed(state, reason) => self.change(state, reason)?,
                Event::Order(order, responder) => {
                    if let Some(outcome) = self.carry_out(order, responder) {
                        return Ok(outcome);
                    }
                }
                Event::Ended(index, pid, ended) => {
                    if let Some(status) = self.ended(index, pid, ended?)? {
                        return Ok(Outcome::Ended(status));
                    }
                }
            }
        }
    }

    /// Carries out a client's order. Returns the outcome if it ends the guest.
    fn carry_out(&mut self, order: Order, responder: Responder) -> Option<Outcome> {
        let response = match order {
            Order::Destroy { graceful } if !graceful || self.ends_gracefully() => {
                self.waiting.push(responder);
                return Some(Outcome::Destroyed);
            }
            Order::Destroy { .. } => {
                let message = "the monitor did not end: without --graceful it is killed";
                Response::Error(message.to_owned())
            }
            Order::State => match serde_json::to_value(&self.state) {
                Ok(state) => Response::Ok(state),
                Err(error) => Response::Error(error.to_string()),
            },
            Order::RestartWhenOff => self.set_restart(true),
            Order::SetMetadata(change) => {
                self.state.definition.set_metadata(change);
                match self.note() {
                    Ok(()) => Response::Ok(serde_json::Value::Null),
                    Err(error) => Response::Error(format!("{error:#}")),
                }
            }
            Order::StayOff => self.set_restart(false),
            Order::Subscribe(subscriber) => {
                self.subscribers.push(subscriber);
                Response::Ok(serde_json::Value::Null)
            }
        };
        responder.respond(response);
        None
    }

    /// Has the monitor end by SIGTERM. Returns whether it did; otherwise the guest is served on.
    fn ends_gracefully(&mut self) -> bool {
        let monitor = |role| role == Role::Monitor;
        self.signal(monitor, Signal::TERM);
        self.wait_for(monitor, false);
        let ended = !self.runs(monitor);
        if !ended {
            let now = Instant::now();
            for slot in self.slots.iter_mut().filter(|slot| slot.child.is_none()) {
                slot.restart_at.get_or_insert(now);
            }
        }
        ended
    }

    fn set_restart(&mut self, restart: bool) -> Response {
        self.restart_when_off = restart;
        Response::Ok(serde_json::Value::Null)
    }

    /// Starts each process that does not run, whose pause is over, and whose dependencies are ready.
    fn start_what_can_be(&mut self) -> anyhow::Result<()> {
        let now = Instant::now();
        let ready: Vec<bool> = self.slots.iter().map(|slot| slot.was_ready).collect();
        let mut started = false;
        for (index, slot) in self.slots.iter_mut().enumerate() {
            let waits = slot.restart_at.is_some_and(|when| when > now);
            let process = &slot.process;
            let needs = |&other: &usize| !ready.get(other).copied().unwrap_or(false);
            let lacks_helper = process.needs_helper && !self.helper_held;
            if slot.child.is_some() || waits || lacks_helper || process.after.iter().any(needs) {
                continue;
            }
            let child = Child::start(process, index, &self.around)
                .with_context(|| format!("cannot start {}", process.program.path.display()))?;
            slot.child = Some(child);
            slot.restart_at = None;
            started = true;
        }
        match started {
            true => self.note(),
            false => Ok(()),
        }
    }

    fn helper_news(&mut self, news: HelperNews) -> anyhow::Result<()> {
        let said = match news {
            HelperNews::Held => {
                self.helper_held = true;
                self.helper_was_held = true;
                self.helper_missed = None;
                return Ok(());
            }
            HelperNews::Failed(error) if !self.helper_was_held => return Err(error),
            HelperNews::Failed(error) => format!("{error:#}; trying again"),
            HelperNews::Gone(ended) => {
                let why = ended.map(|ended| format!(" ({})", ended.why()));
                format!(
                    "net-helper is gone{}: looking for another",
                    why.unwrap_or_default()
                )
            }
        };
        // The guest and its network go on without a helper.
        self.helper_held = false;
        if self.helper_missed.replace(said.clone()).as_ref() != Some(&said) {
            self.around.messages.warn(&said);
        }
        Ok(())
    }

    fn next_restart(&self) -> Option<Instant> {
        self.slots.iter().filter_map(|slot| slot.restart_at).min()
    }

    fn ready(&mut self, pid: u32) -> anyhow::Result<()> {
        let mut monitor = false;
        for slot in &mut self.slots {
            if let Some(child) = slot.child.as_ref().filter(|child| child.pid == pid) {
                child.set_ready();
                slot.was_ready = true;
                slot.restarts.works(Instant::now());
                monitor |= slot.is_monitor();
            }
        }
        if monitor {
            self.monitor_runs();
            self.change(RunState::Running, Reason::Booted)?;
            self.report_start();
        }
        Ok(())
    }

    fn report_start(&mut self) {
        if let Some(then) = self.on_started.take() {
            then(&self.state);
        }
    }

    fn monitor_runs(&self) {
        if let Some(console) = &self.console {
            console.connect(&self.folder.path().join("console.sock"));
        }
    }

    /// Handles the end of a process: returns the monitor's status, and has any other process started again, unless it
    /// never got ready.
    fn ended(&mut self, index: usize, pid: u32, ended: Ended) -> anyhow::Result<Option<i32>> {
        let folder = self.folder.path();
        let Some(slot) = self.slots.get_mut(index) else {
            return Ok(None);
        };
        let gone = slot.child.as_ref().map_or(0, |child| child.pid);
        // The event is of a process that was replaced already.
        if gone != pid {
            return Ok(None);
        }
        let child = slot.child.take();
        let name = slot.process.name.clone();
        if slot.is_monitor() {
            let began = child.is_none_or(|child| child.is_ready());
            self.log_end(&name, pid, &ended, true);
            return monitor_ended(&ended, began, folder).map(Some);
        }
        if !slot.was_ready {
            return Err(ended.never_began(&name));
        }
        let again = slot.restarts.after(ended.is_success(), Instant::now());
        slot.restart_at = Some(again);
        // A backend with status 0 has probably ended with its monitor, whose end comes in a moment.
        if !ended.is_success() {
            let message = format!("{name} died ({}): starting it again", ended.why());
            self.around.messages.warn(&message);
        } else {
            self.log_end(&name, pid, &ended, true);
        }
        self.note()?;
        Ok(None)
    }

    /// Notes a change of the guest's state, and reports it to those who want to know.
    fn change(&mut self, state: RunState, reason: Reason) -> anyhow::Result<()> {
        self.state.state = state;
        self.state.reason = reason;
        self.report(state, reason);
        self.note()
    }

    fn report(&mut self, state: RunState, reason: Reason) {
        let change = Change {
            name: self.state.definition.name.clone(),
            state,
            reason,
        };
        self.subscribers
            .retain(|subscriber| subscriber.changes.send(change.clone()).is_ok());
    }

    /// Writes the state for other commands. A guest is not started without it, but one that runs runs on.
    fn note(&mut self) -> anyhow::Result<()> {
        let slots = self.slots.iter();
        let processes = slots.map(|slot| ProcessState {
            name: slot.process.name.clone(),
            id: slot
                .child
                .as_ref()
                .and_then(|child| ProcessId::of(child.pid)),
            restarts: slot.restarts.count(),
        });
        self.state.processes = processes.collect();
        let folder = self.folder.path();
        let failed = || format!("cannot write the state into {}", folder.display());
        match self.state.write(folder) {
            Err(error) if self.state.state != RunState::Starting => {
                let message = format!("{}: {error}", failed());
                self.around.messages.warn(&message);
                Ok(())
            }
            written => written.with_context(failed),
        }
    }
}

impl Slot {
    fn new(process: Process) -> Self {
        Self {
            process,
            child: None,
            was_ready: false,
            restarts: Restarts::default(),
            restart_at: None,
        }
    }

    fn is_monitor(&self) -> bool {
        self.process.role == Role::Monitor
    }
}
