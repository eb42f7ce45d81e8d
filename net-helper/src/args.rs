//! The command line.

use std::os::fd::RawFd;
use std::path::PathBuf;

use bulkhead_process::usage;
use tap::InterfaceName;

use crate::mode::Mode;
use crate::network::{Network, check_together};

/// The options that --br excludes.
const SERVE_OPTIONS: [&str; 6] = [
    "socket_path",
    "network",
    "state_dir",
    "group",
    "exit_idle",
    "client_on_stdin",
];

/// Bridges, TAP devices, NAT and DHCP for the guests of this host.
///
/// Creates the networks, then serves clients that request a TAP device. At its end (SIGTERM), it removes everything
/// that it has created.
#[derive(Debug, clap::Parser)]
#[command(name = "bulkhead-net-helper", version)]
pub(crate) struct Args {
    /// The socket to listen on [default: /run/bulkhead/net-helper.sock, or for a user
    /// $XDG_RUNTIME_DIR/bulkhead/net-helper.sock].
    #[arg(long, value_name = "PATH")]
    socket_path: Option<PathBuf>,

    #[arg(long, value_name = "NETWORK", value_parser = str::parse::<Network>, help = network_help())]
    network: Vec<Network>,

    /// The folder that records what was changed, for the next run if this one is killed [default: net-helper, beside
    /// the socket].
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,

    /// A group whose members may connect, besides root: a name or a number.
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,

    /// End when the last lease and the last hold are gone and no client connects within a second.
    #[arg(long)]
    exit_idle: bool,

    /// Standard input is a connection of the process that starts the helper, and a hold: with --exit-idle the helper
    /// ends if it closes and there is no other client.
    #[arg(long)]
    client_on_stdin: bool,

    /// Do what qemu-bridge-helper does: create one TAP device on this bridge, if /etc/bulkhead/bridge.conf allows it,
    /// send it over --fd, and end.
    #[arg(long, value_name = "NAME", requires = "fd", conflicts_with_all = SERVE_OPTIONS)]
    br: Option<InterfaceName>,

    /// The inherited socket to send the TAP device over, with --br.
    #[arg(long, value_name = "N", requires = "br")]
    fd: Option<RawFd>,

    /// Frames begin with a virtio-net header, with --br.
    #[arg(long, requires = "br")]
    use_vnet: bool,
}

/// What the command line asks for.
#[derive(Debug)]
pub(crate) enum Task {
    /// Create networks and serve clients.
    Serve(Config),
    /// Create one TAP device on a bridge and hand it over.
    BridgeHelper {
        bridge: InterfaceName,
        fd: RawFd,
        vnet: bool,
    },
}

/// The checked options of a helper that serves clients.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) socket: PathBuf,
    pub(crate) state: PathBuf,
    pub(crate) networks: Vec<Network>,
    pub(crate) group: Option<u32>,
    pub(crate) exit_idle: bool,
    pub(crate) client_on_stdin: bool,
}

impl Args {
    pub(crate) fn check(self) -> anyhow::Result<Task> {
        if let (Some(bridge), Some(fd)) = (&self.br, self.fd) {
            let bridge = bridge.clone();
            return Ok(Task::BridgeHelper {
                bridge,
                fd,
                vnet: self.use_vnet,
            });
        }
        self.config().map(Task::Serve)
    }

    fn config(self) -> anyhow::Result<Config> {
        let mut networks = self.network;
        if networks.is_empty() {
            networks.push(Network::default_network().map_err(usage)?);
        }
        check_together(&networks).map_err(|e| usage(format!("--network: {e}")))?;
        let socket = self
            .socket_path
            .unwrap_or_else(bulkhead_net_protocol::default_socket_path);
        let socket =
            std::path::absolute(socket).map_err(|e| usage(format!("--socket-path: {e}")))?;
        let state = self
            .state_dir
            .unwrap_or_else(|| socket.with_file_name("net-helper"));
        let state = std::path::absolute(state).map_err(|e| usage(format!("--state-dir: {e}")))?;
        let group = self.group.as_deref().map(group_id).transpose()?;
        Ok(Config {
            socket,
            state,
            networks,
            group,
            exit_idle: self.exit_idle,
            client_on_stdin: self.client_on_stdin,
        })
    }
}

fn network_help() -> String {
    format!(
        "A network: name=default,subnet=192.168.124.0/24,bridge=bulkhead0,mode={},dhcp=on|off. \
         The first value of each option is its default. Without --network there is one network, `default`",
        Mode::names("|")
    )
}

fn group_id(group: &str) -> anyhow::Result<u32> {
    if let Ok(number) = group.parse() {
        return Ok(number);
    }
    let groups = std::fs::read_to_string("/etc/group").unwrap_or_default();
    find_group(&groups, group)
        .ok_or_else(|| anyhow::anyhow!("--group: there is no group {group:?} in /etc/group"))
}

fn find_group(groups: &str, wanted: &str) -> Option<u32> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, _password, number) = (fields.next()?, fields.next()?, fields.next()?);
        (name == wanted).then(|| number.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn config(args: &[&str]) -> anyhow::Result<Config> {
        Args::try_parse_from([&["bulkhead-net-helper"], args].concat())?.config()
    }

    #[test]
    fn state_is_beside_the_socket() {
        let config = config(&["--socket-path", "/run/x/h.sock"]).unwrap();
        assert_eq!(config.state, PathBuf::from("/run/x/net-helper"));
        assert_eq!(config.networks, [Network::default_network().unwrap()]);
    }

    #[test]
    fn a_network_that_makes_no_sense_is_refused() {
        assert!(config(&["--network", "mode=magic"]).is_err());
        assert!(config(&["--network", "a", "--network", "a"]).is_err());
    }

    #[test]
    fn groups_are_found_by_name() {
        let groups = "root:x:0:\nkvm:x:105:alice\n";
        assert_eq!(find_group(groups, "kvm"), Some(105));
        assert_eq!(find_group(groups, "kv"), None);
    }
}
