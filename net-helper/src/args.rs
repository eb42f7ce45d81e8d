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
/// Makes the networks it is given, then listens for clients that ask for a TAP device. When it is told to end, it
/// undoes all of it.
#[derive(Debug, clap::Parser)]
#[command(name = "bulkhead-net-helper", version)]
pub(crate) struct Args {
    /// The socket to listen on [default: /run/bulkhead/net-helper.sock, for users in $XDG_RUNTIME_DIR/bulkhead].
    #[arg(long, value_name = "PATH")]
    socket_path: Option<PathBuf>,

    #[arg(long, value_name = "NETWORK", value_parser = str::parse::<Network>, help = network_help())]
    network: Vec<Network>,

    /// Where to write down what is to be undone [default: net-helper beside the socket].
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,

    /// The group, besides root, that may use the socket: a name or a number.
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,

    /// Undo everything and end once the last TAP device was given back, nobody else holds the helper, and nobody has
    /// asked for another within a second.
    #[arg(long)]
    exit_idle: bool,

    /// Standard input is a connection of whoever starts this helper, which holds it: with --exit-idle it ends if that
    /// closes and no other client is there.
    #[arg(long)]
    client_on_stdin: bool,

    /// As qemu-bridge-helper: make one TAP device on this bridge, if /etc/bulkhead/bridge.conf allows it, hand it over
    /// on --fd, and end.
    #[arg(long, value_name = "NAME", requires = "fd", conflicts_with_all = SERVE_OPTIONS)]
    br: Option<InterfaceName>,

    /// The inherited socket for --br.
    #[arg(long, value_name = "N", requires = "br")]
    fd: Option<RawFd>,

    /// Have a virtio header before each frame, with --br.
    #[arg(long, requires = "br")]
    use_vnet: bool,
}

/// What is to be done.
#[derive(Debug)]
pub(crate) enum Task {
    /// Make networks and serve clients.
    Serve(Config),
    /// Make one TAP device on a bridge and hand it over.
    Join {
        bridge: InterfaceName,
        fd: RawFd,
        vnet: bool,
    },
}

/// The command line, checked.
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
            return Ok(Task::Join {
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
