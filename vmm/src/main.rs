//! `bulkhead-vmm`: a thin virtual machine monitor: vCPUs, guest RAM, PCI and one vhost-user frontend.
//!
//! It may touch `/dev/kvm`, guest RAM, the kernel and initramfs, and its sockets. It must not know image formats, taps
//! or routes, and depends on no backend. It reads its arguments into a config, builds the machine that this describes,
//! confines itself, and runs it.

#![forbid(unsafe_code)]

mod api;
mod args;
mod backend_warnings;
mod broker;
mod build;
mod buses;
mod config;
mod confine;
mod console;
mod devices;
mod event_monitor;
mod host;
mod kvm;
mod machine;
mod power;
mod probe;
mod run;
mod stop;

use std::process::ExitCode;

use anyhow::Context;
use api::Server;
use args::Args;
use broker::Broker;
use bulkhead_process::signals::{self, SignalFd};
use bulkhead_process::usage;
use console::Console;
use event_monitor::{EventMonitor, Source};
use run::Built;
use stop::StopReason;

fn main() -> ExitCode {
    bulkhead_process::main::<Args>(start)
}

fn start(args: Args) -> anyhow::Result<ExitCode> {
    if args.probe {
        return probe::print();
    }
    let signals = signals::block_termination().context("cannot wait for signals")?;
    // The guest runs on while another job has the terminal.
    let job_control = signals::block(&[libc::SIGTTIN, libc::SIGTTOU]);
    let _job_control = job_control.context("cannot ignore a terminal's signals")?;
    let events = match args.event_monitor() {
        Some(path) => EventMonitor::open(path)
            .with_context(|| format!("--event-monitor: cannot write {}", path.display()))?,
        None => EventMonitor::off(),
    };
    events.report(Source::Vmm, "starting", &[]);
    let broker = Broker::start().context("cannot start the broker process")?;
    let outcome = serve(args, &signals, &broker, &events);
    broker.end();
    report_end(&events, &outcome);
    let reason = outcome?;
    if let StopReason::Crash(vcpu, crash) = reason {
        bulkhead_process::report(&format!("the guest crashed: vCPU {vcpu}: {crash}"));
    }
    Ok(ExitCode::from(reason.status()))
}

/// Writes the last event.
fn report_end(events: &EventMonitor, outcome: &anyhow::Result<StopReason>) {
    let (reason, status) = match outcome {
        Ok(reason) => (reason.name(), reason.status()),
        Err(error) => ("error", bulkhead_process::status(error)),
    };
    let mut properties = vec![("reason", reason.into()), ("status", status.to_string())];
    match outcome {
        Ok(StopReason::Signal(number)) => properties.push(("signal", number.to_string())),
        Ok(_) => {}
        Err(error) => properties.push(("message", format!("{error:#}"))),
    }
    events.report(Source::Vmm, "shutdown", &properties);
    events.finish();
}

/// Builds and runs the guest. Returns why it stopped.
fn serve(
    args: Args,
    signals: &SignalFd,
    broker: &Broker,
    events: &EventMonitor,
) -> anyhow::Result<StopReason> {
    let mut server = match args.api_socket() {
        Some(path) => Some(Server::new(path, broker).context("--api-socket")?),
        None => None,
    };
    let (stage, built) = match (args.into_config(), &mut server) {
        (Some(config), server) => {
            let config = config.check().map_err(usage)?;
            machine::check_sockets(&config)?;
            let console = Console::open(&config.serial, broker)?;
            let stage = confine::begin(None)?;
            events.report(Source::Vmm, "started", &[]);
            events.report(Source::Vm, "booting", &[]);
            (stage, run::build(config, console, server, broker, signals)?)
        }
        (None, Some(server)) => {
            // API requests are hostile input, so they are read in the first stage already.
            let stage = confine::begin(Some(server.folder()))?;
            events.report(Source::Vmm, "started", &[]);
            let built = run::wait_for_guest(server, signals, broker, events)?;
            (stage, built)
        }
        // clap requires one of the two.
        (None, None) => return Ok(StopReason::Api),
    };
    let (config, mut machine) = match built {
        Built::Guest(guest) => *guest,
        Built::Ended(reason) => return Ok(reason),
    };
    machine.make_console_raw();
    broker.seal()?;
    stage.finish()?;
    // From here on the process can only run this guest.
    events
        .start_thread(confine::enter_event_monitor)
        .context("cannot start a thread")?;
    let reason = run::run(&config, &mut machine, &mut server, signals, events)?;
    reason.report_to(events);
    machine.finish();
    drop(machine);
    Ok(reason)
}
