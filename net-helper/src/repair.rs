//! Puts back what others have removed while this program runs: rules, bridges, addresses.
//!
//! Until then nothing passes that must not: each of the two kinds of rules holds without the other, and a TAP device without its bridge
//! is cut off by both.

use std::os::fd::BorrowedFd;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::host::{Host, Standing};
use crate::watch::Watch;
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

    /// Sees what others have done, and puts things back.
    pub(crate) fn look_after(&mut self) {
        let Some(watch) = &mut self.watch else {
            return;
        };
        let networks = &self.networks;
        let own_port = self.table.as_ref().map(nft::Table::port);
        watch.take(
            |index| networks.iter().any(|standing| standing.bridge == index),
            networks.iter().any(|standing| standing.is_missing),
            own_port,
        );
        if !watch.is_due() {
            return;
        }
        for error in self.repair() {
            bulkhead_process::warn(&format!("{error:#}"));
        }
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

    /// The network as it is now.
    fn repair_network(&mut self, standing: &Standing) -> Result<Standing> {
        let mut now = standing.clone();
        let bridge = &standing.network.bridge;
        let there = self.links.by_index(standing.bridge)?;
        if there.is_none() {
            now.is_missing = true;
            let owns = standing.network.owns_bridge();
            match self.links.find(bridge)? {
                Some(link) if !owns && link.is_bridge => now.bridge = link.index,
                // Somebody else may bring it back.
                _ if !owns => return Ok(now),
                Some(_) => bail!("somebody has replaced bridge {bridge} by another interface"),
                None => {
                    self.links.create_bridge(bridge, &standing.mac)?;
                    let made = self.links.find(bridge)?;
                    now.bridge = made.context("the bridge has disappeared again")?.index;
                }
            }
            now.is_missing = false;
        }
        if let Some(addressing) = standing.network.addressing {
            self.links.assign(now.bridge, addressing.subnet)?;
        }
        if there.is_none() {
            for port in &self.ports {
                if port.network == standing.network.name {
                    // Its client may be gone by now.
                    let _ = self.links.set_controller(port.index, now.bridge);
                }
            }
            for server in &mut self.dhcp {
                if server.network() == standing.network.name {
                    server.start_again();
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
