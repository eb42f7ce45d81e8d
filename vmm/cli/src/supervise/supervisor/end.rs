//! How a supervisor ends all processes of a guest in order.

use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use anyhow::bail;
use rustix::process::Signal;

use super::{Outcome, Supervisor};
use crate::guest::Role;
use crate::supervise::control::Order;
use crate::supervise::ending::{CRASHED, RESET};
use crate::supervise::event::{Ended, Event};

/// How long the other processes may take to end by themselves after the guest, and again after SIGTERM.
const GRACE: Duration = Duration::from_secs(10);

impl Supervisor<'_> {
    /// Ends all processes. After the guest's end they end by themselves; otherwise, or if they do not, by SIGTERM and
    /// then SIGKILL.
    pub(super) fn end(&mut self, outcome: &anyhow::Result<Outcome>) -> anyhow::Result<()> {
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
        for failure in failures.iter().skip(1) {
            self.around.messages.warn(failure);
        }
        match failures.first() {
            Some(failure) => bail!("{failure}"),
            None => Ok(()),
        }
    }

    /// Waits for the end of the processes with such a role. Returns the failures among all that end meanwhile.
    pub(super) fn wait_for(&mut self, whom: impl Fn(Role) -> bool, by_itself: bool) -> Vec<String> {
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
                    let (name, is_monitor) = (slot.process.name.clone(), slot.is_monitor());
                    self.log_end(&name, pid, &ended, by_itself);
                    if !ended_well(is_monitor, &ended, by_itself) {
                        failures.push(format!("{name}: {}", ended.why()));
                    }
                }
                // A second signal ends the wait.
                Ok(Event::Stop) | Err(_) => break,
                Ok(Event::Order(Order::Destroy { .. }, responder)) => self.waiting.push(responder),
                Ok(Event::Order(order, responder)) => drop(self.carry_out(order, responder)),
                Ok(_) => {}
            }
        }
        failures
    }

    pub(super) fn runs(&self, whom: impl Fn(Role) -> bool) -> bool {
        let mut slots = self.slots.iter();
        slots.any(|slot| slot.child.is_some() && whom(slot.process.role))
    }

    fn any_runs(&self) -> bool {
        self.runs(|_| true)
    }

    pub(super) fn signal(&self, whom: impl Fn(Role) -> bool, signal: Signal) {
        let slots = self.slots.iter().filter(|slot| whom(slot.process.role));
        for child in slots.filter_map(|slot| slot.child.as_ref()) {
            child.signal(signal);
        }
    }

    pub(super) fn log_end(&self, name: &str, pid: u32, ended: &Ended, by_itself: bool) {
        if let (true, Some(status)) = (self.verbose, ended.status) {
            let how = if by_itself { "by itself" } else { "as told" };
            let words = format!("(process {pid}) ended {how}, {status}");
            self.around.messages.say(name, &words);
        }
    }
}

/// Whether a process ended as it should while all of them end.
fn ended_well(is_monitor: bool, ended: &Ended, by_itself: bool) -> bool {
    // How a process ends that was adopted, nobody learns.
    let Some(status) = ended.status else {
        return true;
    };
    // A process that has just been started does not handle the signal yet.
    let by_signal = !by_itself && status.signal() == Some(libc::SIGTERM);
    // The guest may just have reset or crashed itself.
    let by_guest = is_monitor && matches!(status.code(), Some(RESET | CRASHED));
    status.success() || by_signal || by_guest
}
