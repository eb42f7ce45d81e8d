//! What stands on the host while this program runs: bridges, rules, DHCP servers. Made in order, and undone in the
//! opposite order whatever fails on the way.
//!
//! Rules come before what they guard and go after it. A run that is killed leaves all of it standing, and the next takes it over.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow, bail};
use bulkhead_net_protocol::MacAddr;
use netlink_packet_route::rule::RuleMessage;
use tap::InterfaceName;

use crate::dhcp::Dhcp;
use crate::forwarding::Forwarding;
use crate::identity::random_mac;
use crate::leftovers;
use crate::link::{InUse, Link, Links, USUAL_MTU};
use crate::network::{Mode, Network};
use crate::state::{Record, StateDir};
use crate::subnet::Ipv4Subnet;
use crate::watch::Watch;
use crate::{nft, routing};

/// Everything that was made.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) links: Links,
    pub(crate) networks: Vec<Standing>,
    /// The TAP devices of clients, and those that clients of a run that was killed still have.
    pub(crate) ports: Vec<Port>,
    pub(crate) table: Option<nft::Table>,
    pub(crate) routing: Vec<RuleMessage>,
    pub(crate) watch: Option<Watch>,
    pub(crate) dhcp: Vec<Dhcp>,
    pub(crate) record: Record,
    state: StateDir,
    forwarding: Option<Forwarding>,
    /// Whether all of it was made, and clients are served.
    pub(crate) is_complete: bool,
}

/// A network whose bridge is there.
#[derive(Clone, Debug)]
pub(crate) struct Standing {
    pub(crate) network: Network,
    /// None while somebody has removed it.
    pub(crate) bridge: Option<u32>,
    pub(crate) mtu: u32,
}

/// A TAP device that is a port of a network's bridge.
#[derive(Debug)]
pub(crate) struct Port {
    pub(crate) index: u32,
    /// It has no lease: a client of a run that was killed has it.
    pub(crate) is_adopted: bool,
}

impl Host {
    /// Nothing made yet. `record` is what a run that was killed has left.
    pub(crate) fn new(links: Links, state: StateDir, record: Record, dhcp: Vec<Dhcp>) -> Self {
        Host {
            links,
            networks: Vec::new(),
            ports: Vec::new(),
            table: None,
            routing: Vec::new(),
            watch: None,
            dhcp,
            record,
            state,
            forwarding: None,
            is_complete: false,
        }
    }

    /// Makes everything these networks need. After an error, [`Host::down`] undoes what was made.
    pub(crate) fn up(&mut self, networks: &[Network]) -> Result<()> {
        leftovers::clear(&mut self.links, &mut self.record, networks)?;
        for network in networks {
            self.check(network).with_context(|| network.to_string())?;
        }
        let mut forwarding = Forwarding::open()?;
        let forwards = networks
            .iter()
            .any(|n| matches!(n.mode, Mode::Nat | Mode::Routed));
        let switch_on = forwards && !forwarding.is_on()?;
        self.record.forwarding_was_off |= switch_on;
        self.watch = Some(Watch::open()?);
        self.guard(networks)?;
        self.record.networks = networks.to_vec();
        self.name_bridges()?;
        self.state.write(&self.record)?;
        for network in networks {
            let standing = self.raise(network).with_context(|| network.to_string())?;
            self.adopt(&standing).with_context(|| network.to_string())?;
            self.networks.push(standing);
        }
        routing::remove_all_but(&mut self.links, &self.routing)
            .context("cannot remove old routing rules")?;
        if switch_on {
            forwarding.set(true)?;
        }
        self.forwarding = Some(forwarding);
        for dhcp in &mut self.dhcp {
            dhcp.start()?;
        }
        Ok(())
    }

    /// Makes the rules, those of a run that was killed included, and writes down that they are this program's.
    fn guard(&mut self, networks: &[Network]) -> Result<()> {
        let replace = std::mem::replace(&mut self.record.rules, true);
        self.state.write(&self.record)?;
        let only_guests = self.record.forwarding_was_off;
        match install(nft::chains(networks, only_guests), replace) {
            Ok(table) => self.table = Some(table),
            Err(error) => {
                self.record.rules = replace;
                return Err(error);
            }
        }
        self.routing = routing::wanted(networks, only_guests, self.links.has_ipv6());
        routing::add(&mut self.links, &self.routing).context("cannot make routing rules")
    }

    /// Looks for what would be in the way, before anything is changed.
    fn check(&mut self, network: &Network) -> Result<()> {
        let bridge = self.links.find(&network.bridge)?;
        let Some(addressing) = network.addressing else {
            return match bridge {
                Some(link) if link.is_bridge => Ok(()),
                Some(_) => bail!("{} is not a bridge", network.bridge),
                None if self.has_guests(network)? => Ok(()),
                None => bail!("there is no bridge {} on this host", network.bridge),
            };
        };
        match bridge {
            Some(link) => {
                self.check_own(&link, network)?;
                self.check_subnet(addressing.subnet, Some(link.index))
            }
            None => self.check_subnet(addressing.subnet, None),
        }
    }

    /// Whether guests of a run that was killed are on the network.
    fn has_guests(&mut self, network: &Network) -> Result<bool> {
        let is_left = self.record.networks.iter().any(|n| network.takes_over(n));
        Ok(is_left && leftovers::is_used(&mut self.links, &self.record, network)?)
    }

    fn check_own(&self, link: &Link, network: &Network) -> Result<()> {
        match self.record.is_bridge(link, network) {
            true => Ok(()),
            false => bail!(
                "interface {} exists and is not this program's; choose another with bridge=NAME",
                link.name
            ),
        }
    }

    fn check_subnet(&mut self, subnet: Ipv4Subnet, own: Option<u32>) -> Result<()> {
        let ranges = self
            .links
            .in_use()
            .context("cannot read this host's addresses and routes")?;
        let other = |range: &&InUse| own.is_none() || range.index != own;
        let Some(range) = ranges
            .iter()
            .filter(other)
            .find(|r| subnet.overlaps_prefix(r.address, r.prefix))
        else {
            return Ok(());
        };
        let on = match range.index.map(|index| self.links.by_index(index)) {
            Some(Ok(Some(link))) => format!(" on {}", link.name),
            _ => String::new(),
        };
        let (address, prefix) = (range.address, range.prefix);
        bail!(
            "subnet {subnet} is already in use on this host: {address}/{prefix}{on}; choose another with subnet=…"
        )
    }

    /// Settles the hardware address of each own bridge before it is made: the one it has or had, or else a new one.
    fn name_bridges(&mut self) -> Result<()> {
        let mut bridges = BTreeMap::new();
        for network in self.record.networks.iter().filter(|n| n.owns_bridge()) {
            let there = self.links.find(&network.bridge)?;
            let mac = there.and_then(|link| <[u8; 6]>::try_from(link.mac).ok());
            let name = network.bridge.to_string();
            let mac = match (mac, self.record.bridges.get(&name)) {
                (Some(mac), _) => MacAddr::new(mac),
                (None, Some(&mac)) => mac,
                (None, None) => random_mac()?,
            };
            bridges.insert(name, mac);
        }
        self.record.bridges = bridges;
        Ok(())
    }

    pub(crate) fn create_bridge(&mut self, network: &Network) -> Result<()> {
        let name = &network.bridge;
        let mac = self.record.bridges.get(name.as_str());
        let mac = mac.ok_or_else(|| anyhow!("bridge {name} has no hardware address"))?;
        let made = self
            .links
            .create_bridge(name, &mac.octets(), self.alias(name));
        made.with_context(|| format!("cannot create bridge {name}"))
    }

    /// What the interfaces of a bridge are called in `ip link`.
    pub(crate) fn alias(&self, bridge: &InterfaceName) -> String {
        self.record.owner.alias(bridge)
    }

    fn raise(&mut self, network: &Network) -> Result<Standing> {
        let name = &network.bridge;
        if network.owns_bridge() && self.links.find(name)?.is_none() {
            self.create_bridge(network)?;
        }
        let Some(link) = self.links.find(name)? else {
            if network.owns_bridge() {
                bail!("bridge {name} has disappeared");
            }
            bulkhead_process::warn(&format!(
                "{network}: bridge {name} is gone; its guests are joined to it once it is there again"
            ));
            return Ok(Standing {
                network: network.clone(),
                bridge: None,
                mtu: USUAL_MTU,
            });
        };
        if network.owns_bridge() {
            self.check_own(&link, network)?;
            let alias = self.alias(name);
            self.links.set_alias(link.index, alias)?;
        }
        if let Some(addressing) = network.addressing {
            self.links
                .assign(link.index, addressing.subnet)
                .with_context(|| {
                    format!(
                        "cannot give bridge {name} the address {}",
                        addressing.subnet.gateway()
                    )
                })?;
        }
        Ok(Standing {
            network: network.clone(),
            bridge: Some(link.index),
            mtu: link.mtu,
        })
    }

    /// Whether there are guests of a run that was killed: somebody has a TAP device open that was made or taken over, and no lease.
    pub(crate) fn has_ports(&mut self) -> bool {
        let (links, owner) = (&mut self.links, &self.record.owner);
        let is_open = |port: &Port| match links.made_tap(port.index, owner) {
            Ok(link) => link.is_some_and(|link| link.has_carrier),
            Err(_) => true,
        };
        self.ports.iter().any(is_open)
    }

    /// Whether guests of a run that was killed use what this one has failed to take over.
    fn is_left_to_guests(&mut self) -> bool {
        let Host { links, record, .. } = self;
        let mut is_used = |network| leftovers::is_used(links, record, network).unwrap_or(true);
        !self.is_complete && record.networks.iter().any(&mut is_used)
    }

    /// Undoes everything; goes on when something fails, and returns what did. The rules stay as long as what they guard.
    pub(crate) fn down(mut self) -> Vec<Error> {
        let left_to_guests = self.is_left_to_guests();
        let Host {
            mut links,
            ports,
            record,
            state,
            forwarding,
            table,
            dhcp,
            ..
        } = self;
        let mut errors = Vec::new();
        let mut note = |result: Result<()>| errors.extend(result.err());
        for server in dhcp {
            note(server.stop());
        }
        if left_to_guests {
            note(Err(anyhow!(
                "guests are on networks of a run that was killed: they stay as they are"
            )));
            return errors;
        }
        for port in ports {
            let deleted = match links.made_tap(port.index, &record.owner) {
                Ok(Some(tap)) => links.delete(tap.index),
                found => found.map(drop),
            };
            note(deleted.map_err(Error::from));
        }
        for network in &record.networks {
            let removed = leftovers::remove(&mut links, &record, network);
            note(removed.with_context(|| format!("cannot remove {network}")));
        }
        if record.forwarding_was_off {
            let forwarding = forwarding.map_or_else(Forwarding::open, Ok);
            note(forwarding.and_then(|mut switch| switch.set(false)));
        }
        if !errors.is_empty() {
            return errors;
        }
        let mut note = |result: Result<()>| errors.extend(result.err());
        if record.rules {
            note(
                routing::remove_all_but(&mut links, &[]).context("cannot remove the routing rules"),
            );
            let removed = table.map_or_else(|| nft::Table::left(nft::TABLE), Ok);
            let removed = removed.and_then(nft::Table::remove);
            note(removed.context("cannot remove the nftables table"));
        }
        // Listing the folder takes a descriptor.
        drop(links);
        note(state.remove());
        errors
    }
}

/// Makes the table. One that is to be replaced may belong to a process that has been killed and has not quite ended.
fn install(chains: Vec<nft::Chain>, replace: bool) -> Result<nft::Table> {
    const TRIES: usize = 100;
    let make = || nft::Table::install(nft::TABLE, chains.clone(), replace);
    let mut made = make();
    for _ in 0..TRIES {
        match &made {
            Err(e) if replace && e.kind() == ErrorKind::PermissionDenied => {
                std::thread::sleep(Duration::from_millis(20));
                made = make();
            }
            _ => break,
        }
    }
    made.map_err(|error| match error.kind() {
        // The one is said of a table without an owner, the other of one whose owner lives.
        ErrorKind::AlreadyExists | ErrorKind::PermissionDenied => anyhow!(
            "there is an nftables table inet {} already: is another bulkhead-net-helper running?",
            nft::TABLE
        ),
        _ => Error::from(error).context(format!(
            "cannot make the nftables table inet {}",
            nft::TABLE
        )),
    })
}
