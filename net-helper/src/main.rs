//! `bulkhead-net-helper`: bridges, TAP devices, NAT and DHCP. The only privileged process of Bulkhead.
//!
//! It creates the networks on its command line and confines itself. Then it serves clients: each gets an open TAP
//! device over the socket, which is removed when the client's connection closes. At its end the helper removes
//! everything that it has created. What a killed run has left is taken over by the next.
//!
//! It may touch netlink (routing and nf_tables), `/dev/net/tun`, `net.ipv4.ip_forward`, its socket and its state
//! folder. It must never touch guest memory, an image, /dev/kvm, or any nftables table but its own. It depends on
//! `bulkhead-net-protocol`, `bulkhead-process` and `tap`.
//!
//! | file | contents |
//! |---|---|
//! | `args`, `network`, `subnet` | the command line and the networks on it |
//! | `mode/` | the network modes, one file each |
//! | `host` | everything that exists on the host while the helper runs; its creation and removal |
//! | `rules` | the table and the routing rules, as the interfaces of the moment require them |
//! | `previous_run` | networks that a killed run has left, and the guests on them |
//! | `watch`, `repair` | the changes that others make, and what they have removed is restored |
//! | `identity` | names, addresses and aliases of interfaces |
//! | `link`, `forwarding`, `routing`, `firewall`, `dhcp/` | interfaces, `ip_forward`, routing rules, nftables chains, dnsmasq |
//! | `netlink/`, `nft/` | the kernel's protocols for them |
//! | `listen`, `serve`, `connection`, `lease`, `reclaim` | clients, their TAP devices, and the removal of these |
//! | `state` | the state folder, which records what was changed |
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
mod rules;
mod serve;
mod state;
mod subnet;
mod watch;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bulkhead_process::broker::Broker;
use bulkhead_process::{notify, signals};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::Mode;
use rustix::io::Errno;
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
        Task::BridgeHelper { bridge, fd, vnet } => {
            bridge_helper::run(&bridge, fd, vnet).map(|()| ExitCode::SUCCESS)
        }
        Task::Serve(_) if is_set_user_id() => {
            bail!("a set-user-ID bulkhead-net-helper does --br and nothing else")
        }
        Task::Serve(config) => run(config),
    })
}

/// Whether the program runs with another user or group than those of the process that has started it.
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
    // Files get the modes that this program gives them, whatever the umask was: dnsmasq depends on its files' modes.
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let first_client = config
        .client_on_stdin
        .then(listen::connection_on_stdin)
        .transpose()?;
    raise_file_limit(serve::MAX_OPEN_FILES)?;
    // Before anything is created: a signal that comes from here on ends the helper in order.
    let signals = signals::block_termination().context("cannot block signals")?;
    let mut links = Links::open().context("cannot open a netlink socket")?;
    let mut broker = Broker::start().context("cannot start the process that removes files")?;
    let wait = |time| is_to_go_on(&signals, time);
    let Some((mut state, mut record)) = StateDir::open(&config.state, &config.socket, wait)? else {
        return Ok(ExitCode::SUCCESS);
    };
    let is_first = record == Record::default();
    previous_run::assign_owner(&mut links, &state, &mut record)
        .context("cannot take over what an older version has left")?;
    config.networks = previous_run::with_networks_in_use(&mut links, &config.networks, &record)?;
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
    let mut host = Host::new(links, state, record, dhcp);
    let mut server = Server::new(config.exit_idle);
    if let Some(connection) = first_client {
        server.add_first_client(connection);
    }
    let served = bind_and_serve(&config, &signals, &mut host, &mut server, &mut broker);
    // Clients wait for the end of their connection, and then find everything removed. So the end of the process closes
    // the connections, which does not wait for files that a client has sent.
    std::mem::forget(server.close(&mut host));
    let errors = host.down();
    // Of a broker that was killed, the error names what is left, and its end would name it again.
    match &served {
        Err(error) if error.is::<CannotRemove>() => drop(broker),
        _ => broker.end(),
    }
    for error in &errors {
        bulkhead_process::warn(&format!("{error:#}"));
    }
    served?;
    match errors.len() {
        0 => Ok(ExitCode::SUCCESS),
        _ => bail!("not everything could be undone"),
    }
}

/// Waits for a time. Returns false when a signal that ends the program has come.
fn is_to_go_on(signals: &signals::SignalFd, time: Duration) -> Result<bool> {
    let time = Timespec::try_from(time).context("too long a time")?;
    let mut fds = [PollFd::new(signals, PollFlags::IN)];
    match poll(&mut fds, Some(&time)) {
        Ok(signals) => Ok(signals == 0),
        Err(Errno::INTR) => Ok(true),
        Err(error) => Err(error).context("poll"),
    }
}

/// Raises the limit of open files, as far as the hard limit allows.
fn raise_file_limit(number: u64) -> Result<()> {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < number) {
        limit.current = Some(limit.maximum.map_or(number, |maximum| maximum.min(number)));
        setrlimit(Resource::Nofile, limit).context("cannot raise the limit of open files")?;
    }
    Ok(())
}

/// Listens, creates the networks and serves, until a signal or until the helper is idle.
fn bind_and_serve(
    config: &Config,
    signals: &signals::SignalFd,
    host: &mut Host,
    server: &mut Server,
    broker: &mut Broker,
) -> Result<()> {
    // Listening comes first: if another program listens on the socket, nothing has been changed yet. Clients that
    // connect now wait.
    let mut listener = Listener::bind(&config.socket, config.group)?;
    let handed = listener.hand_file_to(broker).and_then(|()| broker.seal());
    handed.with_context(|| CannotRemove::of(config))?;
    let served = create_and_serve(config, &listener, signals, host, server);
    // The socket's file is removed before anything else, so that a client that comes now finds no helper, and not one
    // that is ending.
    listener.end();
    let removed = broker.remove_now();
    served.and(removed.with_context(|| CannotRemove::of(config)))
}

/// The broker was killed, so the socket and the state folder stay.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot remove {} and {}: the broker, the process that does it, has been killed",
    socket.display(), state.display()
)]
struct CannotRemove {
    socket: PathBuf,
    state: PathBuf,
}

impl CannotRemove {
    fn of(config: &Config) -> Self {
        CannotRemove {
            socket: config.socket.clone(),
            state: config.state.clone(),
        }
    }
}

fn create_and_serve(
    config: &Config,
    listener: &Listener,
    signals: &signals::SignalFd,
    host: &mut Host,
    server: &mut Server,
) -> Result<()> {
    host.up(&config.networks)?;
    let removal = Links::open().context("cannot open a netlink socket")?;
    confine::enter(&config.state).context("cannot confine the process")?;
    let own = Own {
        owner: host.record.owner.clone(),
        group: identity::random_group()?,
    };
    let reclaim = Reclaim::start(removal, own, server.closing.clone())?;
    notify::ready(signals).context("cannot report readiness")?;
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
