//! What exists on the host while this program runs: bridges, rules, DHCP servers. [`Host::up`] creates it in order;
//! [`Host::down`] removes it in the opposite order, and goes on when a step fails.
//!
//! Rules are created before the bridges that they protect, and removed after them. A run that is killed leaves
//! everything in place, and the next run takes it over.

use std::collections::BTreeMap;

use anyhow::{Context, Error, Result, anyhow, bail};
use bulkhead_mac::MacAddr;
use netlink_packet_route::rule::RuleMessage;
use tap::InterfaceName;

use crate::dhcp::Dhcp;
use crate::forwarding::Forwarding;
use crate::identity::random_mac;
use crate::link::{DEFAULT_MTU, Identity, InUse, Link, Links};
use crate::network::Network;
use crate::previous_run;
use crate::state::{Record, StateDir};
use crate::subnet::Ipv4Subnet;
use crate::watch::Watch;
use crate::{nft, routing};

/// Everything that was created.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) links: Links,
    pub(crate) networks: Vec<ActiveNetwork>,
    /// The TAP devices of this run's clients, and those that clients of the previous run still have open.
    pub(crate) ports: Vec<Port>,
    pub(crate) table: Option<nft::Table>,
    pub(crate) routing: Vec<RuleMessage>,
    /// Interfaces of others on top of this program's, which the table closes.
    pub(crate) above: Vec<u32>,
    /// Whether such interfaces have come or gone since they were listed.
    pub(crate) above_changed: bool,
    pub(crate) watch: Option<Watch>,
    pub(crate) dhcp: Vec<Dhcp>,
    pub(crate) record: Record,
    pub(crate) state: StateDir,
    forwarding: Option<Forwarding>,
    /// Whether everything was created and clients are served.
    pub(crate) is_complete: bool,
    /// Whether the last repair has failed, for example because another interface has a bridge's name.
    pub(crate) is_damaged: bool,
}

/// A network in use on this host; libvirt calls it active.
#[derive(Clone, Debug)]
pub(crate) struct ActiveNetwork {
    pub(crate) network: Network,
    /// The bridge's interface index; `None` while somebody else has removed the bridge.
    pub(crate) bridge: Option<u32>,
    pub(crate) mtu: u32,
}

/// A TAP device that is a port of a network's bridge.
#[derive(Debug)]
pub(crate) struct Port {
    pub(crate) index: u32,
    /// It has no lease: a client of the previous run, which was killed, has it open.
    pub(crate) is_adopted: bool,
}

impl Host {
    /// Creates nothing yet. `record` is what the previous run has left, if that was killed.
    pub(crate) fn new(links: Links, state: StateDir, record: Record, dhcp: Vec<Dhcp>) -> Self {
        Host {
            links,
            networks: Vec::new(),
            ports: Vec::new(),
            table: None,
            routing: Vec::new(),
            above: Vec::new(),
            above_changed: true,
            watch: None,
            dhcp,
            record,
            state,
            forwarding: None,
            is_complete: false,
            is_damaged: false,
        }
    }

    /// Creates everything that these networks need. After an error, [`Host::down`] removes what was created.
    pub(crate) fn up(&mut self, networks: &[Network]) -> Result<()> {
        previous_run::remove_all_but(networks, &mut self.links, &mut self.record)?;
        for network in networks {
            self.check_conflicts(network)
                .with_context(|| network.to_string())?;
        }
        let mut forwarding = Forwarding::open()?;
        let forwards = networks.iter().any(|n| n.mode.is_routed());
        let switch_on = forwards && !forwarding.is_on()?;
        self.record.forwarding_was_off |= switch_on;
        self.watch = Some(Watch::open()?);
        self.install_rules(networks)?;
        self.record.networks = networks.to_vec();
        self.choose_bridge_macs()?;
        self.state.write(&self.record)?;
        for network in networks {
            let active = self
                .create_network(network)
                .with_context(|| network.to_string())?;
            self.adopt_taps(&active)
                .with_context(|| network.to_string())?;
            self.networks.push(active);
        }
        self.update_table()?;
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

    /// Fails if the network's bridge or subnet is in use by somebody else, before anything is changed.
    fn check_conflicts(&mut self, network: &Network) -> Result<()> {
        let bridge = self.find_bridge(network)?;
        let Some(addressing) = network.addressing else {
            return match bridge {
                Some(link) if link.is_bridge => Ok(()),
                Some(_) => bail!("{} is not a bridge", network.bridge),
                None if self.previous_run_has_guests_on(network)? => Ok(()),
                None => bail!("there is no bridge {} on this host", network.bridge),
            };
        };
        match bridge {
            Some(link) => {
                self.check_is_own_bridge(&link, network)?;
                self.check_subnet(addressing.subnet, Some(link.index))
            }
            None => self.check_subnet(addressing.subnet, None),
        }
    }

    /// The interface with the name of a network's bridge, or else the network's own bridge with another name.
    pub(crate) fn find_bridge(&mut self, network: &Network) -> Result<Option<Link>> {
        match self.links.find(&network.bridge)? {
            // Only a bridge that was created can have another name.
            None if !self.record.networks.is_empty() => {
                previous_run::own_bridge(&mut self.links, &self.record, network)
            }
            found => Ok(found),
        }
    }

    /// Whether guests of a run that was killed are on the network.
    fn previous_run_has_guests_on(&mut self, network: &Network) -> Result<bool> {
        let is_known = self.record.networks.iter().any(|n| network.takes_over(n));
        Ok(is_known && previous_run::is_in_use(&mut self.links, &self.record, network)?)
    }

    fn check_is_own_bridge(&self, link: &Link, network: &Network) -> Result<()> {
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

    /// Chooses the MAC address of each bridge before it is created: the bridge's present one, or that of the previous
    /// run, or else a random one.
    fn choose_bridge_macs(&mut self) -> Result<()> {
        let mut bridges = BTreeMap::new();
        for network in self.record.networks.iter().filter(|n| n.owns_bridge()) {
            let there = previous_run::own_bridge(&mut self.links, &self.record, network)?;
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
        let mac = mac.ok_or_else(|| anyhow!("bridge {name} has no MAC address"))?;
        let created = self
            .links
            .create_bridge(name, &mac.octets(), self.identity(name));
        created.with_context(|| format!("cannot create bridge {name}"))
    }

    /// What marks a bridge and its TAP devices as this program's; `ip link` shows it.
    pub(crate) fn identity(&self, bridge: &InterfaceName) -> Identity {
        self.record.owner.identity(bridge)
    }

    /// Gives a bridge the name and the marks back that somebody has changed. Until then the rules let nothing pass
    /// there.
    pub(crate) fn restore_identity(&mut self, link: &Link, network: &Network) -> Result<()> {
        let name = &network.bridge;
        let identity = self.identity(name);
        if link.alias != identity.alias || link.group != identity.group {
            self.links.set_identity(link.index, identity)?;
        }
        if link.name == name.as_str() {
            return Ok(());
        }
        let was = &link.name;
        if self.links.find(name)?.is_some() {
            bail!(
                "somebody has renamed bridge {name} to {was}, and another interface has its name"
            );
        }
        let renamed = self.links.rename(link.index, name);
        renamed.with_context(|| format!("cannot rename {was} to {name}"))?;
        bulkhead_process::warn(&format!(
            "{network}: somebody has renamed bridge {name} to {was}; it has its name again"
        ));
        Ok(())
    }

    fn create_network(&mut self, network: &Network) -> Result<ActiveNetwork> {
        let name = &network.bridge;
        if network.owns_bridge() && self.find_bridge(network)?.is_none() {
            self.create_bridge(network)?;
        }
        let Some(link) = self.find_bridge(network)? else {
            if network.owns_bridge() {
                bail!("bridge {name} has disappeared");
            }
            bulkhead_process::warn(&format!(
                "{network}: bridge {name} is gone; guests are attached to it when it exists again"
            ));
            return Ok(ActiveNetwork {
                network: network.clone(),
                bridge: None,
                mtu: DEFAULT_MTU,
            });
        };
        if network.owns_bridge() {
            self.check_is_own_bridge(&link, network)?;
            self.restore_identity(&link, network)?;
        }
        if let Some(addressing) = network.addressing {
            self.links
                .add_address(link.index, addressing.subnet)
                .with_context(|| {
                    format!(
                        "cannot give bridge {name} the address {}",
                        addressing.subnet.gateway()
                    )
                })?;
        }
        Ok(ActiveNetwork {
            network: network.clone(),
            bridge: Some(link.index),
            mtu: link.mtu,
        })
    }

    /// Takes over the TAP devices that clients of the previous run still have open, and removes those that nobody has
    /// open.
    fn adopt_taps(&mut self, active: &ActiveNetwork) -> Result<()> {
        self.reattach_taps(active)?;
        for tap in previous_run::taps(&mut self.links, &self.record.owner, &active.network)? {
            if !tap.has_carrier {
                self.links.delete(tap.index)?;
                continue;
            }
            let group = self.record.owner.group();
            if tap.group != group {
                self.links.set_group(tap.index, group)?;
            }
            // Two networks can be on one bridge that is somebody else's.
            if self.ports.iter().all(|port| port.index != tap.index) {
                self.ports.push(Port {
                    index: tap.index,
                    is_adopted: true,
                });
            }
        }
        Ok(())
    }

    /// Makes the TAP devices whose bridge was removed ports of the new bridge. A device that somebody has put on
    /// another bridge stays there.
    pub(crate) fn reattach_taps(&mut self, active: &ActiveNetwork) -> Result<()> {
        let Some(bridge) = active.bridge else {
            return Ok(());
        };
        let mut taps = previous_run::taps(&mut self.links, &self.record.owner, &active.network)?;
        taps.retain(|tap| tap.controller.is_none());
        for tap in taps {
            self.links.set_controller(tap.index, bridge)?;
        }
        Ok(())
    }

    /// Whether a TAP device is open that has no lease: when no client has one, guests of the previous run are still
    /// there.
    pub(crate) fn has_open_ports(&mut self) -> bool {
        let (links, owner) = (&mut self.links, &self.record.owner);
        let is_open = |port: &Port| match owner.tap(links, port.index) {
            Ok(link) => link.is_some_and(|link| link.has_carrier),
            Err(_) => true,
        };
        self.ports.iter().any(is_open)
    }

    /// Whether this run has failed to take over networks that guests of the previous run are on.
    fn has_guests_not_taken_over(&mut self) -> bool {
        let Host { links, record, .. } = self;
        let mut is_in_use =
            |network| previous_run::is_in_use(links, record, network).unwrap_or(true);
        !self.is_complete && record.networks.iter().any(&mut is_in_use)
    }

    /// Removes everything; goes on when a step fails, and returns all errors. The rules stay when a bridge that they
    /// protect could not be removed.
    pub(crate) fn down(mut self) -> Vec<Error> {
        let has_guests = self.has_guests_not_taken_over();
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
        if has_guests {
            note(Err(anyhow!(
                "guests are on networks of a run that was killed: they stay as they are"
            )));
            return errors;
        }
        for port in ports {
            let deleted = match record.owner.tap(&mut links, port.index) {
                Ok(Some(tap)) => links.delete(tap.index),
                found => found.map(drop),
            };
            note(deleted.map_err(Error::from));
        }
        for network in &record.networks {
            let removed = previous_run::remove(&mut links, &record, network);
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
            let removed = table.map_or_else(|| nft::Table::existing(nft::TABLE), Ok);
            let removed = removed.and_then(nft::Table::remove);
            note(removed.context("cannot remove the nftables table"));
        }
        // Free a descriptor, which listing the folder needs.
        drop(links);
        note(state.remove());
        errors
    }
}
