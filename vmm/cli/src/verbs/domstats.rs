//! `bulkhead domstats`: prints figures of guests by libvirt's names.

use std::process::ExitCode;

use anyhow::bail;
use serde_json::{Map, Value, json};

use crate::domain::Domain;
use crate::output::Output;
use crate::stats::{interface, memory, vcpu};
use crate::supervise::state::{Reason, RunState, Times};

/// Guests and what is printed of them.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Guests: their names, ids or UUIDs; without any, all
    #[arg(value_name = "DOMAIN")]
    domain: Vec<String>,
    #[command(flatten)]
    groups: Groups,
    #[command(flatten)]
    lists: Lists,
    /// For virsh's sake: no figure needs formatting
    #[arg(long)]
    raw: bool,
    /// For virsh's sake: each group can be had
    #[arg(long)]
    enforce: bool,
    /// For virsh's sake: no figure is waited for
    #[arg(long)]
    nowait: bool,
}

/// Groups of figures; without any, all.
#[derive(Clone, Copy, Debug, clap::Args)]
struct Groups {
    /// The state
    #[arg(long)]
    state: bool,
    /// The processor time of all processes of the guest
    #[arg(long)]
    cpu_total: bool,
    /// The memory
    #[arg(long)]
    balloon: bool,
    /// The virtual CPUs
    #[arg(long)]
    vcpu: bool,
    /// The network cards
    #[arg(long)]
    interface: bool,
    /// The disks
    #[arg(long)]
    block: bool,
}

/// Which guests.
#[derive(Clone, Copy, Debug, clap::Args)]
struct Lists {
    /// Those that run
    #[arg(long)]
    list_active: bool,
    /// Those that do not run
    #[arg(long)]
    list_inactive: bool,
    /// Those with a definition in a file
    #[arg(long)]
    list_persistent: bool,
    /// Those without one
    #[arg(long)]
    list_transient: bool,
    /// Those in the state running
    #[arg(long)]
    list_running: bool,
    /// Those in the state paused
    #[arg(long)]
    list_paused: bool,
    /// Those in the state shut off
    #[arg(long)]
    list_shutoff: bool,
    /// Those in any other state
    #[arg(long)]
    list_other: bool,
}

/// What adds a group's figures.
type Adds = fn(&mut Figures, &Domain);

/// The figures of a guest in the order in which they are printed.
struct Figures {
    name: String,
    list: Vec<(String, Value)>,
}

pub(crate) fn run(args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    let domains = match args.domain.is_empty() {
        true => Domain::all()?,
        false if args.lists.any() => {
            bail!("--list-… and names of domains are mutually exclusive: leave one of them out")
        }
        false => {
            let names = args.domain.iter();
            names
                .map(|name| Domain::find(name))
                .collect::<Result<_, _>>()?
        }
    };
    let all: Vec<Figures> = domains
        .iter()
        .filter(|domain| args.lists.include(domain))
        .map(|domain| args.groups.of(domain))
        .collect();
    let shown: Vec<Value> = all.iter().map(Figures::json).collect();
    output.show(&shown, |_| {
        let texts: Vec<String> = all.iter().map(Figures::text).collect();
        texts.join("\n")
    })?;
    Ok(ExitCode::SUCCESS)
}

impl Lists {
    fn any(self) -> bool {
        [
            (self.list_active, self.list_inactive),
            (self.list_persistent, self.list_transient),
            (self.list_running, self.list_paused),
            (self.list_shutoff, self.list_other),
        ]
        .iter()
        .any(|(one, other)| *one || *other)
    }

    fn include(self, domain: &Domain) -> bool {
        // Of each kind of list, the guest is in one that is asked for, or none is asked for.
        let pass = |lists: &[(bool, bool)]| {
            let asked = lists.iter().any(|(asked, _)| *asked);
            !asked || lists.contains(&(true, true))
        };
        let (runs, persistent) = (domain.running.is_some(), domain.is_persistent());
        let state = domain.state().0;
        let running = matches!(state, RunState::Running | RunState::Starting);
        let other = matches!(state, RunState::InShutdown | RunState::Crashed);
        pass(&[(self.list_active, runs), (self.list_inactive, !runs)])
            && pass(&[
                (self.list_persistent, persistent),
                (self.list_transient, !persistent),
            ])
            && pass(&[
                (self.list_running, running),
                (self.list_paused, state == RunState::Paused),
                (self.list_shutoff, state == RunState::ShutOff),
                (self.list_other, other),
            ])
    }
}

impl Groups {
    fn of(self, domain: &Domain) -> Figures {
        let groups: [(bool, Adds); 6] = [
            (self.state, Figures::add_state),
            (self.cpu_total, Figures::add_cpu),
            (self.balloon, Figures::add_memory),
            (self.vcpu, Figures::add_vcpus),
            (self.interface, Figures::add_interfaces),
            (self.block, Figures::add_disks),
        ];
        let all = !groups.iter().any(|(wanted, _)| *wanted);
        let mut figures = Figures {
            name: domain.name().to_owned(),
            list: Vec::new(),
        };
        for (wanted, add) in groups {
            if all || wanted {
                add(&mut figures, domain);
            }
        }
        figures
    }
}

impl Figures {
    fn add(&mut self, name: impl Into<String>, value: impl Into<Value>) {
        self.list.push((name.into(), value.into()));
    }

    fn add_state(&mut self, domain: &Domain) {
        let (state, reason) = domain.state();
        self.add("state.state", state_number(state));
        self.add("state.reason", reason_number(state, reason));
    }

    fn add_cpu(&mut self, domain: &Domain) {
        let Some(state) = &domain.running else { return };
        let times = state.processes.iter();
        let times = times.filter_map(|process| process.id?.times());
        let sum = times.fold(Times::default(), |sum, one| sum + one);
        self.add("cpu.time", sum.total());
        self.add("cpu.user", sum.user);
        self.add("cpu.system", sum.system);
    }

    fn add_memory(&mut self, domain: &Domain) {
        let memory = memory::of(domain);
        if domain.running.is_some() {
            self.add("balloon.current", memory.actual);
        }
        self.add("balloon.maximum", memory.actual);
        if let Some(rss) = memory.rss {
            self.add("balloon.rss", rss);
        }
    }

    fn add_vcpus(&mut self, domain: &Domain) {
        let count = domain.definition().cpus;
        self.add("vcpu.current", count);
        self.add("vcpu.maximum", count);
        for vcpu in vcpu::of(domain) {
            let index = vcpu.index;
            // 1 is VIR_VCPU_RUNNING.
            self.add(format!("vcpu.{index}.state"), 1);
            self.add(format!("vcpu.{index}.time"), vcpu.time);
            self.add(format!("vcpu.{index}.wait"), vcpu.wait);
        }
    }

    fn add_interfaces(&mut self, domain: &Domain) {
        if domain.running.is_none() {
            return;
        }
        let cards = interface::of(domain);
        self.add("net.count", cards.len());
        for (index, card) in cards.into_iter().enumerate() {
            let counters = card.tap.as_deref().and_then(interface::counters);
            let name = card.tap.unwrap_or(card.process);
            self.add(format!("net.{index}.name"), name);
            for (name, value) in counters.iter().flat_map(|counters| counters.named()) {
                // `rx_packets` is `rx.pkts` here.
                let name = name.replace('_', ".").replace("packets", "pkts");
                self.add(format!("net.{index}.{name}"), value);
            }
        }
    }

    fn add_disks(&mut self, domain: &Domain) {
        let disks = domain.definition().named_disks();
        self.add("block.count", disks.len());
        for (index, (name, disk)) in disks.into_iter().enumerate() {
            self.add(format!("block.{index}.name"), name);
            let path = disk.path.display().to_string();
            self.add(format!("block.{index}.path"), path);
            if let Ok(metadata) = std::fs::metadata(&disk.path) {
                self.add(format!("block.{index}.physical"), metadata.len());
            }
        }
    }

    fn json(&self) -> Value {
        let figures: Map<String, Value> = self.list.iter().cloned().collect();
        json!({ "name": self.name, "stats": figures })
    }

    fn text(&self) -> String {
        let mut text = format!("Domain: '{}'\n", self.name);
        for (name, value) in &self.list {
            let value = match value {
                Value::String(text) => text.clone(),
                value => value.to_string(),
            };
            text.push_str(&format!("  {name}={value}\n"));
        }
        text
    }
}

/// libvirt's `virDomainState`.
fn state_number(state: RunState) -> u8 {
    match state {
        RunState::Starting | RunState::Running => 1,
        RunState::Paused => 3,
        RunState::InShutdown => 4,
        RunState::ShutOff => 5,
        RunState::Crashed => 6,
    }
}

/// The number of a reason among those that libvirt has for the state; 0 is unknown.
fn reason_number(state: RunState, reason: Reason) -> u8 {
    match (state, reason) {
        (RunState::Starting | RunState::Running, Reason::Booted)
        | (RunState::Paused | RunState::InShutdown, Reason::User)
        | (RunState::ShutOff, Reason::Shutdown)
        | (RunState::Crashed, Reason::Panicked) => 1,
        (RunState::ShutOff, Reason::Destroyed) => 2,
        (RunState::ShutOff, Reason::Crashed | Reason::Panicked) => 3,
        (RunState::Starting | RunState::Running, Reason::Unpaused) => 5,
        (RunState::ShutOff, Reason::Failed) => 6,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_virshs() {
        let figures = Figures {
            name: "test".to_owned(),
            list: vec![
                ("state.state".to_owned(), 1.into()),
                ("state.reason".to_owned(), 0.into()),
                ("block.0.path".to_owned(), "/d".into()),
            ],
        };
        // As virsh 9.0 prints its test guest, and a line with a text.
        assert_eq!(
            figures.text(),
            "Domain: 'test'\n  state.state=1\n  state.reason=0\n  block.0.path=/d\n"
        );
    }
}
