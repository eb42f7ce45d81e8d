//! The event loops: one until the guest is built, and one while it runs. The guest's I/O does not wake them.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use bulkhead_kvm::Vcpus;
use bulkhead_process::signals::SignalFd;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::api::{ApiEvent, Next, Request, Response, Running, Server, Waiting};
use crate::broker::Broker;
use crate::build::{Build, Builder};
use crate::config::VmConfig;
use crate::confine;
use crate::console::Console;
use crate::event_monitor::{EventMonitor, Source};
use crate::machine::Machine;
use crate::stop::StopReason;

#[derive(Clone, Copy, Debug)]
enum Event {
    Signal,
    Stopped,
    /// The machine is built, or building it has failed.
    Built,
    /// There is a warning about a backend.
    Backend,
    Api(ApiEvent),
}

/// An event, and what it is polled by.
type Polled<'a> = (Event, PollFd<'a>);

/// The guest that is to run, or the reason that there is none.
pub(crate) enum Built {
    Guest(Box<(VmConfig, Machine)>),
    Ended(StopReason),
}

/// Builds the machine, and serves the API meanwhile. A signal or a request that ends the monitor first does not wait
/// for a backend.
pub(crate) fn build(
    config: VmConfig,
    console: Option<Console>,
    server: &mut Option<Server>,
    broker: &Broker,
    signals: &SignalFd,
) -> anyhow::Result<Built> {
    let mut waiting = Waiting::booting(&config);
    let build = Build::start(config, console, broker.clone())?;
    loop {
        let deadline = server.as_ref().and_then(Server::deadline);
        let mut sources = base_sources(signals, server.as_ref());
        sources.push(source(Event::Built, build.done()));
        let mut end = None;
        for event in wait(sources, deadline)? {
            match (event, &mut *server) {
                (Event::Signal, _) => end = end.or(signals.take()?.map(StopReason::Signal)),
                (Event::Built, _) if end.is_none() => {
                    return Ok(Built::Guest(Box::new(build.finish()?)));
                }
                (Event::Api(event), Some(server)) => server.handle(event, |request| {
                    let (reply, next) = waiting.answer(request, |_| Ok(()));
                    end = end.or((next == Next::End).then_some(StopReason::Api));
                    reply
                }),
                _ => {}
            }
        }
        if let Some(reason) = end {
            return Ok(Built::Ended(reason));
        }
        if let Some(server) = server {
            server.tidy();
        }
    }
}

/// Serves the API until a guest is built, or a signal or a request ends the monitor. The guest's serial port may be in
/// the socket's folder.
pub(crate) fn wait_for_guest(
    server: &mut Server,
    signals: &SignalFd,
    broker: &Broker,
    events: &EventMonitor,
) -> anyhow::Result<Built> {
    let mut waiting = Waiting::new(server.folder());
    let mut builder = Builder::new(broker)?;
    bulkhead_process::notify::ready(signals)?;
    loop {
        let mut end = None;
        let deadline = server.deadline();
        let mut sources = base_sources(signals, Some(server));
        sources.extend(builder.done().map(|done| source(Event::Built, done)));
        for event in wait(sources, deadline)? {
            let failed = match event {
                Event::Built => match builder.take() {
                    Ok(Some(guest)) if end.is_none() => return Ok(Built::Guest(Box::new(guest))),
                    Ok(_) => continue,
                    Err(error) => Some(waiting.boot_failed(&format!("{error:#}"))),
                },
                _ => None,
            };
            let answer = |request: &Request| {
                let start = |config: &VmConfig| {
                    builder
                        .start(config)
                        .map_err(|error| format!("{error:#}"))?;
                    events.report(Source::Vm, "booting", &[]);
                    Ok(())
                };
                let (reply, next) = waiting.answer(request, start);
                end = end.or((next == Next::End).then_some(StopReason::Api));
                reply
            };
            match (event, failed) {
                (_, Some(response)) => server.resolve(&response, answer),
                (Event::Api(event), None) => server.handle(event, answer),
                (Event::Signal, None) => end = end.or(signals.take()?.map(StopReason::Signal)),
                _ => {}
            }
        }
        if let Some(reason) = end {
            const WHY: &str = "the monitor is ending";
            let response = waiting.boot_failed(WHY);
            let refuse = |_: &VmConfig| Err(WHY.to_owned());
            server.resolve(&response, |request| waiting.answer(request, refuse).0);
            return Ok(Built::Ended(reason));
        }
        server.tidy();
    }
}

/// Runs the machine until it stops.
pub(crate) fn run(
    config: &VmConfig,
    machine: &mut Machine,
    server: &mut Option<Server>,
    signals: &SignalFd,
    events: &EventMonitor,
) -> anyhow::Result<StopReason> {
    if let Some((console, serial)) = &mut machine.console {
        console.start(serial, confine::enter_serial)?;
    }
    machine.devices.activate()?;
    let vcpus = std::mem::take(&mut machine.vcpus);
    let vcpus = Vcpus::start(vcpus, &machine.buses, false, confine::enter_vcpu)?;
    let stop = machine.buses.stop.clone();
    let running = Running::new(config, &vcpus, &machine.devices, &stop, events);
    events.report(Source::Vm, "booted", &[]);
    if let Some(server) = server {
        server.resolve(&Response::Done, |request| running.answer(request));
        server.tidy();
    }
    bulkhead_process::notify::ready(signals)?;
    loop {
        let deadline = server.as_ref().and_then(Server::deadline);
        let deadline = deadline
            .into_iter()
            .chain(machine.warnings.deadline())
            .min();
        for event in wait(sources(machine, server.as_ref(), signals), deadline)? {
            match (event, &mut *server) {
                (Event::Signal, _) => {
                    if let Some(signal) = signals.take()? {
                        stop.report(StopReason::Signal(signal));
                    }
                }
                (Event::Api(event), Some(server)) => {
                    server.handle(event, |request| running.answer(request));
                }
                _ => {}
            }
        }
        if let Some(server) = server {
            server.tidy();
        }
        if let Some(reason) = stop.reason() {
            vcpus.pause();
            if reason == StopReason::Reset {
                machine.devices.reset();
            }
            machine.devices.remove();
            return Ok(reason);
        }
        machine.warnings.write_due();
    }
}

/// Waits for an event or the deadline.
fn wait(sources: Vec<Polled<'_>>, deadline: Option<Instant>) -> anyhow::Result<Vec<Event>> {
    let (events, mut fds): (Vec<_>, Vec<_>) = sources.into_iter().unzip();
    let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    // A deadline is less than a minute away, so the conversion succeeds.
    let timeout = left.and_then(|left| Timespec::try_from(left).ok());
    match poll(&mut fds, timeout.as_ref()) {
        Ok(_) => {}
        Err(Errno::INTR) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    }
    let ready = events.into_iter().zip(&fds);
    Ok(ready
        .filter(|(_, fd)| !fd.revents().is_empty())
        .map(|(event, _)| event)
        .collect())
}

fn source(event: Event, fd: BorrowedFd<'_>) -> Polled<'_> {
    (event, PollFd::from_borrowed_fd(fd, PollFlags::IN))
}

/// The event sources with and without a guest.
fn base_sources<'a>(signals: &'a SignalFd, server: Option<&'a Server>) -> Vec<Polled<'a>> {
    let mut sources = vec![source(Event::Signal, signals.as_fd())];
    if let Some(server) = server {
        server.sources(|event, fd, flags| {
            sources.push((Event::Api(event), PollFd::from_borrowed_fd(fd, flags)));
        });
    }
    sources
}

/// The event sources while the guest runs.
fn sources<'a>(
    machine: &'a Machine,
    server: Option<&'a Server>,
    signals: &'a SignalFd,
) -> Vec<Polled<'a>> {
    let mut sources = base_sources(signals, server);
    sources.push(source(Event::Stopped, machine.buses.stop.event()));
    sources.push(source(Event::Backend, machine.warnings.changed()));
    sources
}
