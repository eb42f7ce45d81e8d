//! What stands on the host while this program runs: bridges, rules, DHCP servers. Made in order, and undone in the
//! opposite order whatever fails on the way.

use std::collections::BTreeMap;

use anyhow::{Context, Error, Result, anyhow, bail};

use crate::dhcp::Dhcp;
use crate::forwarding::Forwarding;
use crate::link::{InUse, Link, Links};
use crate::network::{Mode, Network};
use crate::nft;
use crate::state::{Record, StateDir};
use crate::subnet::Ipv4Subnet;

/// Everything that was made.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) links: Links,
    pub(crate) networks: Vec<Standing>,
    record: Record,
    state: StateDir,
    forwarding: Option<Forwarding>,
    table: Option<nft::Table>,
    dhcp: Vec<Dhcp>,
}

/// A network whose bridge is there.
#[derive(Clone, Debug)]
pub(crate) struct Standing {
    pub(crate) network: Network,
    pub(crate) bridge: u32,
    pub(crate) mtu: u32,
}

impl Host {
    /// Nothing made yet. `record` is what a run that was killed has left.
    pub(crate) fn new(state: StateDir, record: Record, dhcp: Vec<Dhcp>) -> Result<Self> {
        let links = Links::open().context("cannot speak to the kernel about interfaces")?;
        Ok(Host {
            links,
            networks: Vec::new(),
            record,
            state,
            forwarding: None,
            table: None,
            dhcp,
        })
    }

    /// Makes everything these networks need. After an error, [`Host::down`] undoes what was made.
    pub(crate) fn up(&mut self, networks: &[Network]) -> Result<()> {
        self.clear_leftovers(networks)?;
        for network in networks {
            self.check(network).with_context(|| network.to_string())?;
        }
        let mut forwarding = Forwarding::open()?;
        let forwards = networks
            .iter()
            .any(|n| matches!(n.mode, Mode::Nat | Mode::Routed));
        let switch_on = forwards && !forwarding.is_on()?;
        self.record.forwarding_was_off |= switch_on;
        self.record.bridges = owned(networks);
        self.state.write(&self.record)?;
        for network in networks {
            let standing = self.raise(network).with_context(|| network.to_string())?;
            self.networks.push(standing);
        }
        if switch_on {
            forwarding.set(true)?;
        }
        self.forwarding = Some(forwarding);
        self.table = Some(install(networks)?);
        for dhcp in &mut self.dhcp {
            dhcp.go()?;
        }
        Ok(())
    }

    /// Removes bridges of a run that was killed which these networks do not have.
    fn clear_leftovers(&mut self, networks: &[Network]) -> Result<()> {
        let wanted = owned(networks);
        for (name, subnet) in std::mem::take(&mut self.record.bridges) {
            if wanted.get(&name) == Some(&subnet) {
                self.record.bridges.insert(name, subnet);
                continue;
            }
            let name = name.parse().with_context(|| "state file names a bridge")?;
            if let Some(link) = self.links.find(&name)? {
                remove_bridge(&mut self.links, &link)
                    .with_context(|| format!("cannot remove the leftover bridge {name}"))?;
            }
        }
        Ok(())
    }

    /// Looks for what would be in the way, before anything is changed.
    fn check(&mut self, network: &Network) -> Result<()> {
        let bridge = self.links.find(&network.bridge)?;
        let Some(addressing) = network.addressing else {
            return match bridge {
                Some(link) if link.is_bridge => Ok(()),
                Some(_) => bail!("{} is not a bridge", network.bridge),
                None => bail!("there is no bridge {} on this host", network.bridge),
            };
        };
        let ours = self.record.bridges.contains_key(network.bridge.as_str());
        match bridge {
            Some(link) if ours && link.is_bridge => {
                self.check_subnet(addressing.subnet, Some(link.index))
            }
            Some(_) => {
                let name = &network.bridge;
                Err(anyhow!(
                    "interface {name} exists and is not this program's; choose another with bridge=NAME"
                ))
            }
            None => self.check_subnet(addressing.subnet, None),
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

    fn raise(&mut self, network: &Network) -> Result<Standing> {
        let name = &network.bridge;
        if network.owns_bridge() && self.links.find(name)?.is_none() {
            let mac = crate::identity::random_mac()?;
            self.links
                .create_bridge(name, mac.octets())
                .with_context(|| format!("cannot create bridge {name}"))?;
        }
        let link = self
            .links
            .find(name)?
            .ok_or_else(|| anyhow!("bridge {name} has disappeared"))?;
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
            bridge: link.index,
            mtu: link.mtu,
        })
    }

    /// The DHCP servers, to be watched.
    pub(crate) fn dhcp(&self) -> &[Dhcp] {
        &self.dhcp
    }

    /// Forgets a DHCP server that has died for good.
    pub(crate) fn bury(&mut self, position: usize) -> Option<Dhcp> {
        (position < self.dhcp.len()).then(|| self.dhcp.swap_remove(position))
    }

    /// Undoes everything; goes on when something fails, and returns what did.
    pub(crate) fn down(self) -> Vec<Error> {
        let Host {
            mut links,
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
        if let Some(table) = table {
            note(table.remove().context("cannot remove the nftables table"));
        }
        for name in record.bridges.keys() {
            let removed =
                name.parse()
                    .map_err(Error::from)
                    .and_then(|name| match links.find(&name)? {
                        Some(link) => remove_bridge(&mut links, &link),
                        None => Ok(()),
                    });
            note(removed.with_context(|| format!("cannot remove bridge {name}")));
        }
        if record.forwarding_was_off {
            let forwarding = forwarding.map_or_else(Forwarding::open, Ok);
            note(forwarding.and_then(|mut switch| switch.set(false)));
        }
        note(state.remove());
        errors
    }
}

/// Removes a bridge and the TAP devices of this program that are still its ports.
fn remove_bridge(links: &mut Links, bridge: &Link) -> Result<()> {
    if !bridge.is_bridge {
        bail!("{} is not a bridge any more", bridge.name);
    }
    for port in links.ports(bridge.index)? {
        if port.name.starts_with(crate::identity::TAP_PREFIX) {
            links.delete(port.index)?;
        }
    }
    Ok(links.delete(bridge.index)?)
}

fn owned(networks: &[Network]) -> BTreeMap<String, String> {
    let own = |n: &Network| {
        n.addressing
            .map(|a| (n.bridge.to_string(), a.subnet.to_string()))
    };
    networks.iter().filter_map(own).collect()
}

fn install(networks: &[Network]) -> Result<nft::Table> {
    nft::Table::install(nft::TABLE, &nft::chains(networks)).map_err(|error| match error.kind() {
        // The one is said of a table without an owner, the other of one whose owner lives.
        std::io::ErrorKind::AlreadyExists | std::io::ErrorKind::PermissionDenied => anyhow!(
            "there is an nftables table inet {} already: is another bulkhead-net-helper running?",
            nft::TABLE
        ),
        _ => Error::from(error).context(format!(
            "cannot make the nftables table inet {}",
            nft::TABLE
        )),
    })
}
