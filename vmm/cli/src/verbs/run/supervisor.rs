//! Starts the processes of a guest, those that do not depend on each other in parallel. Starts a backend that dies
//! again, and ends all processes in order.

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bulkhead_process::warn;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use rustix::process::Signal;

use super::child::Child;
use super::console::{Console, Input};
use super::event::{Ended, Event, Helper as HelperNews};
use super::helper::Helper;
use super::ready;
use super::restarts::Restarts;
use super::signals::Signals;
use crate::guest::{Plan, Process, Role};
use crate::runtime::GuestFolder;

/// How long the other processes may take to end by themselves after the guest, and again after SIGTERM.
const GRACE: Duration = Duration::from_secs(10);

/// How a run ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The monitor ended with this status.
    Ended(i32),
    /// A signal ended the run.
    Stopped,
}

/// A process of the plan and its state.
struct Slot {
    process: Process,
    child: Option<Child>,
    was_ready: bool,
    restarts: Restarts,
    restart_at: Option<Instant>,
}

/// Runs plans, one after the other.
pub(crate) struct Supervisor {
    events: Receiver<Event>,
    sender: Sender<Event>,
    notify: PathBuf,
    input: Input,
    verbose: bool,
    slots: Vec<Slot>,
    /// The network helper, from the first guest that needs it to the end of the run.
    helper: Option<Helper>,
    helper_held: bool,
    helper_was_held: bool,
    /// The last warning about its absence, so that none is written twice.
    helper_missed: Option<String>,
}

impl Supervisor {
    pub(crate) fn new(
        folder: &GuestFolder,
        signals: Signals,
        console: &Console,
        verbose: bool,
    ) -> anyhow::Result<Self> {
        let (sender, events) = unbounded();
        let notify = ready::listen(folder.path(), sender.clone())
            .with_context(|| format!("cannot listen in {}", folder.path().display()))?;
        signals
            .serve(console.terminal(), sender.clone())
            .context("cannot watch for signals")?;
        Ok(Self {
            events,
            sender,
            notify,
            input: console.input(),
            verbose,
            slots: Vec::new(),
            helper: None,
            helper_held: false,
            helper_was_held: false,
            helper_missed: None,
        })
    }

    /// Runs the processes until the monitor ends or a signal ends the run. All of them have ended when this returns.
    pub(crate) fn run(&mut self, plan: Plan) -> anyhow::Result<Outcome> {
        if let (Some(wanted), None) = (plan.helper, &self.helper) {
            let helper = Helper::need(wanted, self.verbose, self.sender.clone());
            self.helper = Some(helper.context("cannot watch bulkhead-net-helper")?);
        }
        self.slots = plan
            .processes
            .into_iter()
            .map(|process| Slot {
                process,
                child: None,
                was_ready: false,
                restarts: Restarts::default(),
                restart_at: None,
            })
            .collect();
        let outcome = self.watch();
        let ended = self.end(&outcome);
        outcome.and_then(|outcome| ended.map(|()| outcome))
    }

    /// Releases the helper, after the last guest.
    pub(crate) fn close(self) -> anyhow::Result<()> {
        self.helper.map_or(Ok(()), Helper::release)
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
                Event::Ready(pid) => self.ready(pid),
                Event::Helper(news) => self.helper_news(news)?,
                Event::Ended(index, pid, ended) => {
                    if let Some(status) = self.ended(index, pid, ended?)? {
                        return Ok(Outcome::Ended(status));
                    }
                }
            }
        }
    }

    /// Starts each process that does not run, whose pause is over, and whose dependencies are ready.
    fn start_what_can_be(&mut self) -> anyhow::Result<()> {
        let now = Instant::now();
        let ready: Vec<bool> = self.slots.iter().map(|slot| slot.was_ready).collect();
        for (index, slot) in self.slots.iter_mut().enumerate() {
            let waits = slot.restart_at.is_some_and(|when| when > now);
            let process = &slot.process;
            let needs = |&other: &usize| !ready.get(other).copied().unwrap_or(false);
            let lacks_helper = process.needs_helper && !self.helper_held;
            if slot.child.is_some() || waits || lacks_helper || process.after.iter().any(needs) {
                continue;
            }
            let child = Child::start(process, index, &self.notify, &self.input, &self.sender)
                .with_context(|| format!("cannot start {}", process.program.path.display()))?;
            slot.child = Some(child);
            slot.restart_at = None;
        }
        Ok(())
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
            warn(&said);
        }
        Ok(())
    }

    fn next_restart(&self) -> Option<Instant> {
        self.slots.iter().filter_map(|slot| slot.restart_at).min()
    }

    fn ready(&mut self, pid: u32) {
        for slot in &mut self.slots {
            if let Some(child) = slot.child.as_ref().filter(|child| child.pid == pid) {
                child.set_ready();
                slot.was_ready = true;
                slot.restarts.works(Instant::now());
            }
        }
    }

    /// Handles the end of a process: returns the monitor's status, and has any other process started again, unless it
    /// never got ready.
    fn ended(&mut self, index: usize, pid: u32, ended: Ended) -> anyhow::Result<Option<i32>> {
        let Some(slot) = self.slots.get_mut(index) else {
            return Ok(None);
        };
        // The event is of a process that was replaced already.
        let Some(child) = slot.child.take_if(|child| child.pid == pid) else {
            return Ok(None);
        };
        let name = slot.process.name.clone();
        let began = child.is_ready();
        if slot.process.role == Role::Monitor {
            self.log_end(&name, pid, &ended, true);
            return monitor_ended(ended, began).map(Some);
        }
        if !slot.was_ready {
            return Err(ended.never_began(&name));
        }
        let again = slot.restarts.after(ended.status.success(), Instant::now());
        slot.restart_at = Some(again);
        // A backend with status 0 has probably ended with its monitor, whose end comes in a moment.
        if !ended.status.success() {
            warn(&format!("{name} died ({}): starting it again", ended.why()));
        } else {
            self.log_end(&name, pid, &ended, true);
        }
        Ok(None)
    }

    /// Ends all processes. After the guest's end they end by themselves; otherwise, or if they do not, by SIGTERM and
    /// then SIGKILL.
    fn end(&mut self, outcome: &anyhow::Result<Outcome>) -> anyhow::Result<()> {
        let by_itself = matches!(outcome, Ok(Outcome::Ended(_)));
        let mut failures = Vec::new();
        if by_itself {
            failures.extend(self.wait_for(|_| true, true));
        } else {
            // The monitor ends first, since it would warn about a backend that ends before it.
            let monitor = |role| role == Role::Monitor;
            self.signal(monitor, Signal::TERM);
            failures.extend(self.wait_for(monitor, false));
        }
        if self.any_runs() {
            self.signal(|_| true, Signal::TERM);
            failures.extend(self.wait_for(|_| true, false));
        }
        if self.any_runs() {
            for slot in self.slots.iter().filter(|slot| slot.child.is_some()) {
                failures.push(format!("{} did not end and was killed", slot.process.name));
            }
            self.signal(|_| true, Signal::KILL);
            failures.extend(self.wait_for(|_| true, false));
        }
        match failures.first() {
            Some(failure) => bail!("{failure}"),
            None => Ok(()),
        }
    }

    /// Waits for the end of the processes with such a role. Returns the failures among all that end meanwhile.
    fn wait_for(&mut self, whom: impl Fn(Role) -> bool, by_itself: bool) -> Vec<String> {
        let deadline = Instant::now() + GRACE;
        let mut failures = Vec::new();
        while self.runs(&whom) {
            match self.events.recv_deadline(deadline) {
                Ok(Event::Ended(index, pid, Ok(ended))) => {
                    let Some(slot) = self.slots.get_mut(index) else {
                        continue;
                    };
                    if slot.child.take_if(|child| child.pid == pid).is_none() {
                        continue;
                    }
                    let name = slot.process.name.clone();
                    self.log_end(&name, pid, &ended, by_itself);
                    // A process that has just been started does not handle the signal yet.
                    let by_signal = !by_itself && ended.status.signal() == Some(libc::SIGTERM);
                    if !ended.status.success() && !by_signal {
                        failures.push(format!("{name}: {}", ended.why()));
                    }
                }
                // A second signal ends the wait.
                Ok(Event::Stop) | Err(_) => break,
                Ok(_) => {}
            }
        }
        failures
    }

    fn runs(&self, whom: impl Fn(Role) -> bool) -> bool {
        let mut slots = self.slots.iter();
        slots.any(|slot| slot.child.is_some() && whom(slot.process.role))
    }

    fn any_runs(&self) -> bool {
        self.runs(|_| true)
    }

    fn signal(&self, whom: impl Fn(Role) -> bool, signal: Signal) {
        let slots = self.slots.iter().filter(|slot| whom(slot.process.role));
        for child in slots.filter_map(|slot| slot.child.as_ref()) {
            child.signal(signal);
        }
    }

    fn log_end(&self, name: &str, pid: u32, ended: &Ended, by_itself: bool) {
        if self.verbose {
            let how = if by_itself { "by itself" } else { "as told" };
            let words = format!("(process {pid}) ended {how}, {}", ended.status);
            bulkhead_process::say(name, &words);
        }
    }
}

/// The monitor's status, which becomes the run's. A death by signal, or an end before the guest began, is an error of
/// the run.
fn monitor_ended(ended: Ended, began: bool) -> anyhow::Result<i32> {
    match ended.status.code() {
        Some(0) => Ok(0),
        Some(status) if began => Ok(status),
        _ => Err(ended.never_began("vmm")),
    }
}
