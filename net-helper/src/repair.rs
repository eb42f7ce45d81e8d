//! Puts back what others have removed while this program runs: rules, bridges, addresses.
//!
//! Until then nothing passes that must not: each of the two kinds of rules holds without the other, and a TAP device without its bridge
//! is cut off by both.

use std::os::fd::BorrowedFd;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::host::{Host, Standing};
use crate::link::Link;
use crate::network::Network;
use crate::watch::{Ports, Watch, Watched};
use crate::{nft, routing};

impl Host {
    /// Readable when [`Host::look_after`] has something to see.
    pub(crate) fn reports(&self) -> Vec<BorrowedFd<'_>> {
        self.watch.iter().flat_map(Watch::watched).collect()
    }

    /// When [`Host::look_after`] has something to do, at the latest.
    pub(crate) fn repair_due(&self) -> Option<Instant> {
        self.watch.as_ref().and_then(Watch::due)
    }

    /// Sees what others have done, and puts things back. The TAP devices whose clients have ended since their helper was killed: they are to
    /// be removed.
    pub(crate) fn look_after(&mut self) -> Vec<u32> {
        let Some(watch) = &mut self.watch else {
            return Vec::new();
        };
        let (networks, ports) = (&self.networks, &self.ports);
        let watched = Watched {
            is_bridge: &|index| {
                networks
                    .iter()
                    .any(|standing| standing.bridge == Some(index))
            },
            is_adopted: &|index| ports.iter().any(|p| p.index == index && p.is_adopted),
            is_missing: networks.iter().any(|standing| standing.bridge.is_none()),
        };
        watch.take(&watched, self.table.as_ref().map(nft::Table::port));
        let changed = watch.take_ports();
        if watch.is_due() {
            for error in self.repair() {
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
            match links.made_tap(port.index, owner) {
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
            if let Some(standing) = self.networks.get(position).cloned() {
                match self.repair_network(&standing) {
                    Ok(repaired) => self.put_back(position, repaired),
                    Err(error) => errors.push(error.context(standing.network.to_string())),
                }
            }
        }
        errors
    }

    fn put_back(&mut self, position: usize, repaired: Standing) {
        if let Some(standing) = self.networks.get_mut(position) {
            *standing = repaired;
        }
    }

    /// The bridge that somebody has removed: made again, or found if it is somebody else's to make.
    fn bring_back(&mut self, network: &Network) -> Result<Option<Link>> {
        let bridge = &network.bridge;
        let found = self.links.find(bridge)?;
        if !network.owns_bridge() {
            return Ok(found.filter(|link| link.is_bridge));
        }
        if found.is_some() {
            bail!("somebody has replaced bridge {bridge} by another interface");
        }
        self.create_bridge(network)?;
        let made = self.links.find(bridge)?;
        made.context("the bridge has disappeared again").map(Some)
    }

    /// The network as it is now.
    fn repair_network(&mut self, standing: &Standing) -> Result<Standing> {
        let mut now = standing.clone();
        let bridge = &standing.network.bridge;
        let there = match standing.bridge {
            Some(index) => self.links.by_index(index)?,
            None => None,
        };
        let link = match there.clone() {
            Some(link) => link,
            None => match self.bring_back(&standing.network)? {
                Some(link) => link,
                None => {
                    now.bridge = None;
                    return Ok(now);
                }
            },
        };
        now.bridge = Some(link.index);
        if let Some(addressing) = standing.network.addressing {
            self.links.assign(link.index, addressing.subnet)?;
        }
        if there.is_none() {
            self.join(&now)?;
            for server in &mut self.dhcp {
                if server.network() == standing.network.name {
                    server.restart();
                }
            }
            bulkhead_process::warn(&format!(
                "{}: somebody has removed bridge {bridge}; it is there again",
                standing.network
            ));
        }
        Ok(now)
    }
}
