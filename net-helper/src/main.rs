//! `bulkhead-net-helper`: bridges, TAP devices, NAT and DHCP. The only privileged process of Bulkhead.
//!
//! It makes the networks it is told to on start, confines itself, and then does one thing: a client that asks over the
//! socket is handed an open TAP device, which goes back when the client's connection closes. Everything is undone when
//! it ends, and what a killed run has left is put right by the next.
//!
//! It may touch netlink (routing and nf_tables), `/dev/net/tun`, `net.ipv4.ip_forward`, its socket and its state
//! folder. It must never touch guest memory, an image or /dev/kvm, and other nftables tables than its own. It depends
//! on `bulkhead-net-protocol`, `bulkhead-process` and `tap`.
//!
//! | file | what |
//! |---|---|
//! | `args`, `network`, `subnet` | what is wanted, checked |
//! | `host` | what stands, its making and undoing |
//! | `previous_run` | the networks that a killed run has left, and guests on them |
//! | `watch`, `repair` | what others do to it, and putting it back |
//! | `identity` | names, addresses and aliases of what is made |
//! | `link`, `nft`, `routing`, `forwarding`, `dhcp` | the kinds of thing that stand |
//! | `listen`, `serve`, `connection`, `lease`, `reclaim` | clients, and the end of what they had |
//! | `state` | the folder in which it is written down |
//! | `bridge_helper` | what `qemu-bridge-helper` does |

#![forbid(unsafe_code)]

mod args;
mod bridge_helper;
mod confine;
mod connection;
mod dhcp;
mod firewall;
mod forwarding;
mod host;
mod identity;
mod inherited;
mod lease;
mod link;
mod listen;
mod mode;
mod netlink;
mod network;
mod nft;
mod previous_run;
mod reclaim;
mod repair;
mod routing;
mod serve;
mod state;
mod subnet;
mod watch;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use bulkhead_process::broker::Broker;
use bulkhead_process::{notify, signals};
use rustix::fs::Mode;
use rustix::process::{Resource, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, capabilities};

use args::{Args, Config, Task};
use dhcp::Dhcp;
use host::Host;
use link::Links;
use listen::Listener;
use network::Network;
use reclaim::{Own, Reclaim};
use serve::Server;
use state::{Record, StateDir};

fn main() -> ExitCode {
    if !is_set_user_id()
        && let Some(status) = dhcp::run_role(std::env::args_os().skip(1))
    {
        return status;
    }
    bulkhead_process::main::<Args>(|args| match args.check()? {
        Task::Join { bridge, fd, vnet } => {
            bridge_helper::run(&bridge, fd, vnet).map(|()| ExitCode::SUCCESS)
        }
        Task::Serve(_) if is_set_user_id() => {
            bail!("a set-user-ID bulkhead-net-helper does --br and nothing else")
        }
        Task::Serve(config) => run(config),
    })
}

/// Whether it was started by somebody who is not who it runs as.
fn is_set_user_id() -> bool {
    use rustix::process::{getegid, geteuid, getgid, getuid};
    getuid() != geteuid() || getgid() != getegid()
}

fn run(mut config: Config) -> Result<ExitCode> {
    if !capabilities(None)?
        .effective
        .contains(CapabilitySet::NET_ADMIN)
    {
        bail!("bulkhead-net-helper needs CAP_NET_ADMIN: run it as root");
    }
    // Files have the modes that are given to them here, for dnsmasq too, which may not do without.
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let first_client = config
        .client_on_stdin
        .then(listen::connection_on_stdin)
        .transpose()?;
    allow_files(serve::FILES)?;
    let mut links = Links::open().context("cannot speak to the kernel about interfaces")?;
    let mut broker = Broker::start().context("cannot start the process that removes files")?;
    let (mut state, mut record) = StateDir::open(&config.state, &config.socket)?;
    let is_first = record == Record::default();
    previous_run::assign_owner(&mut links, &state, &mut record)
        .context("cannot take over what an older version has left")?;
    config.networks = previous_run::with_networks_in_use(&mut links, &config.networks, &record)?;
    // Supervisors are started before signals are blocked, since they and the programs that they start inherit the
    // signal mask.
    signals::unblock_termination();
    let dhcp = match start_supervisors(&config.networks, state.path()) {
        Ok(dhcp) => dhcp,
        Err(error) => {
            drop(links);
            if is_first {
                state.remove()?;
            }
            return Err(error);
        }
    };
    state.hand_folders_to(&mut broker)?;
    let signals = signals::block_termination().context("cannot block signals")?;
    let mut host = Host::new(links, state, record, dhcp);
    let mut server = Server::new(config.exit_idle);
    if let Some(connection) = first_client {
        server.first_client(connection);
    }
    let served = stand(&config, &signals, &mut host, &mut server, &mut broker);
    // Clients that wait for the end of their connection find everything undone. The process's end closes it, which
    // waits for no file that a client has sent.
    std::mem::forget(server.close(&mut host));
    let errors = host.down();
    broker.end();
    for error in &errors {
        bulkhead_process::warn(&format!("{error:#}"));
    }
    served?;
    match errors.len() {
        0 => Ok(ExitCode::SUCCESS),
        _ => bail!("not everything could be undone"),
    }
}

/// Raises the limit of open files, as far as it may be.
fn allow_files(number: u64) -> Result<()> {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < number) {
        limit.current = Some(limit.maximum.map_or(number, |maximum| maximum.min(number)));
        setrlimit(Resource::Nofile, limit).context("cannot raise the limit of open files")?;
    }
    Ok(())
}

/// Makes the networks and serves, until it is time to end.
fn stand(
    config: &Config,
    signals: &signals::SignalFd,
    host: &mut Host,
    server: &mut Server,
    broker: &mut Broker,
) -> Result<()> {
    // First: when the socket is somebody else's, nothing has been changed yet. Who connects already, waits.
    let mut listener = Listener::bind(&config.socket, config.group)?;
    listener.leave_file_to(broker)?;
    broker.seal()?;
    let served = serve(config, &listener, signals, host, server);
    // The socket's file goes before anything is undone, so that whoever comes now finds no helper rather than one that
    // ends.
    listener.end();
    broker.remove_now()?;
    served
}

fn serve(
    config: &Config,
    listener: &Listener,
    signals: &signals::SignalFd,
    host: &mut Host,
    server: &mut Server,
) -> Result<()> {
    host.up(&config.networks)?;
    let removal = Links::open().context("cannot speak to the kernel about interfaces")?;
    confine::enter(&config.state).context("cannot confine the process")?;
    let own = Own {
        owner: host.record.owner.clone(),
        group: identity::random_group()?,
    };
    let reclaim = Reclaim::start(removal, own, server.closing.clone())?;
    notify::ready().context("cannot report readiness")?;
    host.is_complete = true;
    server.reclaim = Some(reclaim);
    server.run(listener, signals, host)
}

fn start_supervisors(networks: &[Network], state: &Path) -> Result<Vec<Dhcp>> {
    let mut all = Vec::new();
    for network in networks {
        if let Some(addressing) = network.addressing
            && addressing.dhcp
        {
            all.push(Dhcp::prepare(network, addressing.subnet, state)?);
        }
    }
    Ok(all)
}
