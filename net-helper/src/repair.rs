//! Restores rules, bridges and addresses that others have removed while this program runs, and closes the interfaces
//! that others have put on top of its own.
//!
//! Until then no packet passes that must not: the nftables table and the routing rules each suffice without the other,
//! and both drop the packets of a TAP device without a bridge.

use std::cell::Cell;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::host::{ActiveNetwork, Host, Port};
use crate::identity::Owner;
use crate::link::Link;
use crate::network::Network;
use crate::watch::{Ports, Watch, Watched};
use crate::{nft, routing};

impl Host {
    /// Readable when [`Host::process_notifications`] has something to read.
    pub(crate) fn notification_sockets(&self) -> Vec<BorrowedFd<'_>> {
        self.watch.iter().flat_map(Watch::watched).collect()
    }

    /// When [`Host::process_notifications`] is to be called at the latest.
    pub(crate) fn repair_due(&self) -> Option<Instant> {
        self.watch.as_ref().and_then(Watch::due)
    }

    /// Reads the kernel's notifications and restores what others have removed. Returns the adopted TAP devices that
    /// their clients have closed, which the caller must remove.
    pub(crate) fn process_notifications(&mut self) -> Vec<u32> {
        let Some(watch) = &mut self.watch else {
            return Vec::new();
        };
        let (networks, ports, above) = (&self.networks, &self.ports, &self.above);
        let above_changed = Cell::new(false);
        let watched = Watched {
            is_bridge: &|index| networks.iter().any(|active| active.bridge == Some(index)),
            is_adopted: &|index| ports.iter().any(|p| p.index == index && p.is_adopted),
            is_disguised: &|link| is_disguised(link, networks, &self.record.owner),
            is_above: &|link| {
                let is = is_above(link, networks, ports, above);
                above_changed.set(above_changed.get() || is);
                is
            },
            was_above: &|index| {
                let was = above.contains(&index);
                above_changed.set(above_changed.get() || was);
                was
            },
            is_missing: self.is_damaged || networks.iter().any(|active| active.bridge.is_none()),
        };
        watch.read(&watched, self.table.as_ref().map(nft::Table::port));
        self.above_changed |= above_changed.get();
        let changed = watch.take_ports();
        if watch.is_due() {
            let errors = self.repair();
            self.is_damaged = !errors.is_empty();
            for error in errors {
                bulkhead_process::warn(&format!("{error:#}"));
            }
        }
        self.release_adopted(&changed)
    }

    fn release_adopted(&mut self, changed: &Ports) -> Vec<u32> {
        let mut ended = Vec::new();
        let (links, owner) = (&mut self.links, &self.record.owner);
        self.ports.retain(|port| {
            let has_changed = match changed {
                Ports::Some(ports) => ports.contains(&port.index),
                Ports::Any => true,
            };
            if !port.is_adopted || !has_changed {
                return true;
            }
            match owner.tap(links, port.index) {
                Ok(Some(link)) if !link.has_carrier => ended.push(port.index),
                Ok(None) => {}
                Ok(Some(_)) | Err(_) => return true,
            }
            false
        });
        ended
    }

    fn repair(&mut self) -> Vec<anyhow::Error> {
        let mut errors = Vec::new();
        if let Some(table) = &mut self.table {
            let restored = table.restore();
            errors.extend(restored.context("cannot restore the nftables table").err());
        }
        let added = routing::add(&mut self.links, &self.routing);
        errors.extend(added.context("cannot restore the routing rules").err());
        for position in 0..self.networks.len() {
            if let Some(active) = self.networks.get(position).cloned() {
                match self.repair_network(&active) {
                    Ok(repaired) => self.replace(position, repaired),
                    Err(error) => errors.push(error.context(active.network.to_string())),
                }
            }
        }
        errors.extend(self.update_table().err());
        errors
    }

    fn replace(&mut self, position: usize, repaired: ActiveNetwork) {
        if let Some(active) = self.networks.get_mut(position) {
            *active = repaired;
        }
    }

    /// Creates the bridge that somebody has removed. A bridge that is not this program's is only looked for.
    fn restore_bridge(&mut self, network: &Network) -> Result<Option<Link>> {
        let bridge = &network.bridge;
        let found = self.links.find(bridge)?;
        if !network.owns_bridge() {
            return Ok(found.filter(|link| link.is_bridge));
        }
        if found.is_some() {
            bail!("somebody has replaced bridge {bridge} by another interface");
        }
        self.create_bridge(network)?;
        let created = self.links.find(bridge)?;
        created
            .context("the bridge has disappeared again")
            .map(Some)
    }

    /// Restores a network, and returns it as it is now.
    fn repair_network(&mut self, active: &ActiveNetwork) -> Result<ActiveNetwork> {
        let mut now = active.clone();
        let bridge = &active.network.bridge;
        let existing = match active.bridge {
            Some(index) => self.links.by_index(index)?,
            None => None,
        };
        let link = match existing.clone() {
            Some(link) => link,
            None => match self.restore_bridge(&active.network)? {
                Some(link) => link,
                None => {
                    now.bridge = None;
                    return Ok(now);
                }
            },
        };
        now.bridge = Some(link.index);
        if active.network.owns_bridge() {
            self.restore_identity(&link, &active.network)?;
        }
        if let Some(addressing) = active.network.addressing {
            self.links.add_address(link.index, addressing.subnet)?;
        }
        if existing.is_none() {
            self.reattach_taps(&now)?;
            for server in &mut self.dhcp {
                if server.network() == active.network.name {
                    server.restart();
                }
            }
            bulkhead_process::warn(&format!(
                "{}: somebody has removed bridge {bridge}; it is there again",
                active.network
            ));
        }
        Ok(now)
    }
}

/// Whether an interface is a bridge of this program and has lost the name or the marks that the rules know it by.
fn is_disguised(link: &Link, networks: &[ActiveNetwork], owner: &Owner) -> bool {
    networks.iter().any(|active| {
        let network = &active.network;
        let is_it = active.bridge == Some(link.index) && network.owns_bridge();
        let is_named = link.name == network.bridge.as_str();
        let is_marked = link.group == owner.group() && owner.owns(link, &network.bridge);
        is_it && !(is_named && is_marked)
    })
}

/// Whether an interface is on top of one of this program's, or of one in `known`, and is not in `known` itself.
fn is_above(link: &Link, networks: &[ActiveNetwork], ports: &[Port], known: &[u32]) -> bool {
    let is_ours = |index| {
        let mut own = networks
            .iter()
            .filter(|active| active.network.owns_bridge());
        own.any(|active| active.bridge == Some(index))
            || ports.iter().any(|port| port.index == index)
            || known.contains(&index)
    };
    link.below.is_some_and(is_ours) && !known.contains(&link.index)
}
