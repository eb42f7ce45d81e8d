//! `bulkhead-vmm`: a thin virtual machine monitor: vCPUs, guest RAM, PCI and one vhost-user frontend.
//!
//! It may touch `/dev/kvm`, guest RAM, the kernel and initramfs it is told to load, and its sockets. It must not know
//! image formats, taps or routes; it depends on no backend. Arguments become a config, the config becomes a machine,
//! the process confines itself, the machine runs.

#![forbid(unsafe_code)]

mod api;
mod args;
mod config;
mod confine;
mod console;
mod ending;
mod host;
mod hypervisor;
mod machine;
mod platform;
mod power;
mod run;

use std::process::ExitCode;

use anyhow::Context;
use api::Server;
use args::Args;
use bulkhead_process::{signals, usage};
use ending::Ending;
use machine::Machine;

const RESET: u8 = 3;
const CRASH: u8 = 4;

fn main() -> ExitCode {
    bulkhead_process::main::<Args>(start)
}

fn start(args: Args) -> anyhow::Result<ExitCode> {
    let signals = signals::block_termination()?;
    let mut server = match args.api_socket() {
        Some(path) => Some(Server::new(path).context("--api-socket")?),
        None => None,
    };
    let guest = match (args.into_config(), &mut server) {
        (Some(config), _) => {
            let config = config.check().map_err(usage)?;
            let machine = Machine::new(&config)?;
            Some((config, machine))
        }
        (None, Some(server)) => run::wait_for_guest(server, &signals)?,
        (None, None) => None,
    };
    let Some((config, mut machine)) = guest else {
        return Ok(ExitCode::SUCCESS);
    };
    machine.make_console_raw();
    let api_socket = server.iter().map(Server::path);
    confine::confine(api_socket.chain(machine.console_socket()))?;
    // From here on the process can do nothing but run this guest.
    let ending = run::run(&config, &mut machine, &mut server, &signals)?;
    drop(machine);
    Ok(match ending {
        Ending::PowerOff | Ending::Stopped => ExitCode::SUCCESS,
        Ending::Reset => ExitCode::from(RESET),
        Ending::Crash(vcpu, crash) => {
            eprintln!("error: the guest crashed: vCPU {vcpu}: {crash}");
            ExitCode::from(CRASH)
        }
    })
}
