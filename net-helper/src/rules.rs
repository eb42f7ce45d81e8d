//! The nftables table and the routing rules of this run, as the host's interfaces require them.

use std::io::ErrorKind;
use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow};

use crate::firewall::Interfaces;
use crate::host::{ActiveNetwork, Host};
use crate::link::Link;
use crate::network::Network;
use crate::{firewall, nft, previous_run, routing};

impl Host {
    /// Creates the rules, or replaces those that the previous run has left. The record says before that the rules are
    /// this program's.
    pub(crate) fn install_rules(&mut self, networks: &[Network]) -> Result<()> {
        let replace = std::mem::replace(&mut self.record.rules, true);
        self.state.write(&self.record)?;
        let only_guests = self.record.forwarding_was_off;
        let mut bridges = Vec::new();
        for network in networks {
            bridges.push(self.index_of_bridge(network)?);
        }
        let chains = self.chains(networks, &bridges)?;
        match install_table(chains, replace) {
            Ok(table) => self.table = Some(table),
            Err(error) => {
                self.record.rules = replace;
                return Err(error);
            }
        }
        self.routing = routing::wanted(networks, only_guests, self.links.has_ipv6());
        routing::add(&mut self.links, &self.routing).context("cannot create routing rules")
    }

    /// The index of a network's bridge. If somebody has given a bridge that is not this program's another name, the
    /// guests' TAP devices are still its ports.
    fn index_of_bridge(&mut self, network: &Network) -> Result<Option<u32>> {
        if let Some(link) = self.find_bridge(network)? {
            return Ok(Some(link.index));
        }
        if network.owns_bridge() {
            return Ok(None);
        }
        let taps = previous_run::taps(&mut self.links, &self.record.owner, network)?;
        Ok(taps.iter().find_map(|tap| tap.controller))
    }

    /// Lists the interfaces on top of this program's.
    fn list_above(&mut self, networks: &[Network], bridges: &[Option<u32>]) -> Result<()> {
        let group = self.record.owner.group();
        let links = self.links.all().context("cannot list the interfaces")?;
        let all = networks.iter().zip(bridges);
        let own = all.filter(|(network, _)| network.owns_bridge());
        let mut ours: Vec<u32> = own.filter_map(|(_, index)| *index).collect();
        ours.extend(self.ports.iter().map(|port| port.index));
        let in_group = links.iter().filter(|link| link.group == group);
        ours.extend(in_group.map(|link| link.index));
        self.above = above(&links, ours);
        Ok(())
    }

    fn chains(&mut self, networks: &[Network], bridges: &[Option<u32>]) -> Result<Vec<nft::Chain>> {
        let group = self.record.owner.group();
        // Listing hundreds of interfaces would keep clients waiting at each repair.
        if std::mem::take(&mut self.above_changed) {
            self.list_above(networks, bridges)?;
        }
        let interfaces = Interfaces {
            networks,
            bridges,
            group,
            above: &self.above,
        };
        Ok(firewall::chains(
            &interfaces,
            self.record.forwarding_was_off,
        ))
    }

    /// Adds the bridges and the interfaces above them that have been created since to the rules.
    pub(crate) fn update_table(&mut self) -> Result<()> {
        let (mut networks, mut bridges) = (Vec::new(), Vec::new());
        for ActiveNetwork {
            network, bridge, ..
        } in self.networks.clone()
        {
            let index =
                bridge.map_or_else(|| self.index_of_bridge(&network), |index| Ok(Some(index)));
            bridges.push(index?);
            networks.push(network);
        }
        let chains = self.chains(&networks, &bridges)?;
        let updated = self.table.as_mut().map(|table| table.set_chains(chains));
        updated
            .transpose()
            .context("cannot replace the nftables table")?;
        Ok(())
    }
}

/// The interfaces on top of `ours`, directly or on top of such a one: VLANs, macvlans, tunnels of others. What a guest
/// sends comes in by them with any address.
fn above(links: &[Link], mut ours: Vec<u32>) -> Vec<u32> {
    let mut found = Vec::new();
    // Each round but the last finds one of the links at least, so there are at most as many rounds as links.
    loop {
        let is_new = |link: &&Link| {
            let is_above = link.below.is_some_and(|below| ours.contains(&below));
            is_above && !ours.contains(&link.index)
        };
        let new: Vec<u32> = links.iter().filter(is_new).map(|link| link.index).collect();
        if new.is_empty() {
            return found;
        }
        ours.extend(&new);
        found.extend(new);
    }
}

/// Creates the table. One that is to be replaced may belong to a process that was killed and has not ended yet; then
/// the kernel refuses.
fn install_table(chains: Vec<nft::Chain>, replace: bool) -> Result<nft::Table> {
    const TRIES: usize = 100;
    const RETRY_INTERVAL: Duration = Duration::from_millis(20);
    let install = || nft::Table::install(nft::TABLE, chains.clone(), replace);
    let mut installed = install();
    for _ in 0..TRIES {
        match &installed {
            Err(e) if replace && e.kind() == ErrorKind::PermissionDenied => {
                std::thread::sleep(RETRY_INTERVAL);
                installed = install();
            }
            _ => break,
        }
    }
    installed.map_err(|error| match error.kind() {
        // EEXIST: a table without an owner. EPERM: a table whose owner is alive.
        ErrorKind::AlreadyExists | ErrorKind::PermissionDenied => anyhow!(
            "there is an nftables table inet {} already: is another bulkhead-net-helper running?",
            nft::TABLE
        ),
        _ => Error::from(error).context(format!(
            "cannot create the nftables table inet {}",
            nft::TABLE
        )),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_on_top_of_ours_is_found_however_high_it_is() {
        let link = |index, below| Link {
            index,
            below,
            ..Link::default()
        };
        let links = [
            link(7, Some(6)),
            link(6, Some(3)),
            link(3, None),
            link(4, None),
            link(5, Some(4)),
            // Two that are on top of each other, as the ends of a veth pair are.
            link(8, Some(9)),
            link(9, Some(8)),
        ];
        assert_eq!(above(&links, vec![3]), [6, 7]);
        assert_eq!(above(&links, vec![4, 8]), [5, 9]);
        assert!(above(&links, Vec::new()).is_empty());
    }
}
