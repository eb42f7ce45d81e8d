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
mod host;
mod kvm;
mod machine;
mod power;
mod probe;
mod run;
mod stop;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use api::Server;
use args::Args;
use broker::Broker;
use bulkhead_process::signals::{self, SignalFd};
use bulkhead_process::usage;
use console::Console;
use stop::StopReason;

const RESET: u8 = 3;
const CRASH: u8 = 4;

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
    let broker = Broker::start().context("cannot start the broker process")?;
    let outcome = serve(args, &signals, &broker);
    broker.end();
    outcome
}

/// The absolute path of the folder that `path` is in.
fn folder_of(path: &Path) -> PathBuf {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned())
}

fn serve(args: Args, signals: &SignalFd, broker: &Broker) -> anyhow::Result<ExitCode> {
    let mut server = match args.api_socket() {
        Some(path) => Some(Server::new(path, broker).context("--api-socket")?),
        None => None,
    };
    let folder = args.api_socket().map(folder_of);
    let (stage, guest) = match (args.into_config(), &mut server) {
        (Some(config), server) => {
            let config = config.check().map_err(usage)?;
            machine::check_sockets(&config)?;
            let console = Console::open(&config.serial, broker)?;
            let stage = confine::begin(None)?;
            (stage, run::build(config, console, server, broker, signals)?)
        }
        (None, Some(server)) => {
            // API requests are hostile input, so they are read in the first stage already.
            let stage = confine::begin(folder.as_deref())?;
            (stage, run::wait_for_guest(server, signals, broker)?)
        }
        (None, None) => return Ok(ExitCode::SUCCESS),
    };
    let Some((config, mut machine)) = guest else {
        return Ok(ExitCode::SUCCESS);
    };
    machine.make_console_raw();
    broker.seal()?;
    stage.finish()?;
    // From here on the process can only run this guest.
    let reason = run::run(&config, &mut machine, &mut server, signals)?;
    machine.finish();
    drop(machine);
    Ok(match reason {
        StopReason::PowerOff | StopReason::Requested => ExitCode::SUCCESS,
        StopReason::Reset => ExitCode::from(RESET),
        StopReason::Crash(vcpu, crash) => {
            bulkhead_process::report(&format!("the guest crashed: vCPU {vcpu}: {crash}"));
            ExitCode::from(CRASH)
        }
    })
}
