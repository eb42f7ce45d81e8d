//! What a run that was killed has left: networks, and guests on them.
//!
//! No guest loses its network because the helper is started again. A network that guests are still on stays as it was, in everything,
//! whether it is on the command line or not; one that nobody is on and nobody wants goes. Where a network of the command line is in the way
//! of one with guests, nothing is changed at all.

use anyhow::{Context, Result, bail};

use crate::host::{Host, Port, Standing};
use crate::identity::{Owner, TAP_PREFIX};
use crate::link::{Link, Links};
use crate::network::{Network, check_together};
use crate::state::{Record, StateDir};

/// Gives the record an owner, and to the owner what an older version, which had none, has left.
pub(crate) fn claim(links: &mut Links, state: &StateDir, record: &mut Record) -> Result<()> {
    if !record.owner.is_nobody() {
        return Ok(());
    }
    let owner = Owner::random()?;
    if record.networks.is_empty() {
        record.owner = owner;
        return Ok(());
    }
    let all = links.all()?;
    for network in &record.networks {
        let Some(bridge) = all.iter().find(|link| link.name == network.bridge.as_str()) else {
            continue;
        };
        let is_its_tap = |link: &Link| {
            link.is_tap
                && link.controller == Some(bridge.index)
                && link.name.starts_with(TAP_PREFIX)
        };
        let is_its_own = |link: &Link| network.owns_bridge() && link.index == bridge.index;
        for link in all
            .iter()
            .filter(|link| is_its_tap(link) || is_its_own(link))
        {
            links.set_alias(link.index, owner.alias(&network.bridge))?;
        }
    }
    record.owner = owner;
    state.write(record)
}

/// The networks to stand: those that are wanted, and of those that were left the ones that guests are on.
pub(crate) fn with_used(
    links: &mut Links,
    wanted: &[Network],
    record: &Record,
) -> Result<Vec<Network>> {
    let mut all = wanted.to_vec();
    for network in not_taken_over(&record.networks, wanted) {
        if !is_used(links, record, network)? {
            continue;
        }
        all.push(network.clone());
        if let Err(why) = check_together(&all) {
            let was = String::from(network.clone());
            bail!(
                "guests are on {network} of a run that was killed, and {why}: start with --network {was}, or end them first"
            );
        }
    }
    let kept: Vec<_> = all.iter().skip(wanted.len()).map(described).collect();
    if !kept.is_empty() {
        bulkhead_process::warn(&format!(
            "guests are on networks of a run that was killed: {} stay as they were until this program is started without guests on them",
            kept.join(", ")
        ));
    }
    Ok(all)
}

fn described(network: &Network) -> String {
    format!("{} ({})", network.name, network.bridge)
}

fn not_taken_over<'a>(
    left: &'a [Network],
    wanted: &'a [Network],
) -> impl Iterator<Item = &'a Network> {
    let is_gone = |old: &&Network| !wanted.iter().any(|new| new.takes_over(old));
    left.iter().filter(is_gone)
}

/// Whether guests are on a network: somebody has a TAP device open, whether or not the bridge is still there, or has made another
/// interface a port of the network's own bridge.
pub(crate) fn is_used(links: &mut Links, record: &Record, network: &Network) -> Result<bool> {
    let all = links.all()?;
    let is_its_tap = |link: &Link| link.is_tap && record.owner.owns(link, &network.bridge);
    if all.iter().any(|link| is_its_tap(link) && link.has_carrier) {
        return Ok(true);
    }
    let Some(bridge) = all.iter().find(|link| record.is_bridge(link, network)) else {
        return Ok(false);
    };
    let is_a_port = |link: &&Link| link.controller == Some(bridge.index);
    Ok(all.iter().filter(is_a_port).any(|link| !is_its_tap(link)))
}

/// Removes what was left of networks that are not to stand, and takes them out of the record.
pub(crate) fn clear(links: &mut Links, record: &mut Record, networks: &[Network]) -> Result<()> {
    let gone: Vec<_> = not_taken_over(&record.networks, networks)
        .cloned()
        .collect();
    for network in &gone {
        remove(links, record, network)
            .with_context(|| format!("cannot remove what was left of {network}"))?;
        record.networks.retain(|left| left != network);
    }
    Ok(())
}

/// Removes a network's TAP devices, wherever they are, and its bridge if it is this program's.
pub(crate) fn remove(links: &mut Links, record: &Record, network: &Network) -> Result<()> {
    for tap in taps(links, &record.owner, network)? {
        links.delete(tap.index)?;
    }
    match links.find(&network.bridge)? {
        Some(bridge) if record.is_bridge(&bridge, network) => Ok(links.delete(bridge.index)?),
        _ => Ok(()),
    }
}

impl Host {
    /// Takes over the TAP devices that clients of a run that was killed still have, and removes those that nobody has.
    pub(crate) fn adopt(&mut self, standing: &Standing) -> Result<()> {
        self.join(standing)?;
        for tap in taps(&mut self.links, &self.record.owner, &standing.network)? {
            if !tap.has_carrier {
                self.links.delete(tap.index)?;
            // Two networks may be on one bridge that is somebody else's.
            } else if self.ports.iter().all(|port| port.index != tap.index) {
                self.ports.push(Port {
                    index: tap.index,
                    is_adopted: true,
                });
            }
        }
        Ok(())
    }

    /// Makes the TAP devices whose bridge was removed ports of the new one. One that somebody has put on another bridge stays there.
    pub(crate) fn join(&mut self, standing: &Standing) -> Result<()> {
        let Some(bridge) = standing.bridge else {
            return Ok(());
        };
        let mut taps = taps(&mut self.links, &self.record.owner, &standing.network)?;
        taps.retain(|tap| tap.controller.is_none());
        for tap in taps {
            self.links.set_controller(tap.index, bridge)?;
        }
        Ok(())
    }
}

/// This program's TAP devices of a network.
fn taps(links: &mut Links, owner: &Owner, network: &Network) -> Result<Vec<Link>> {
    let mut all = links.all()?;
    all.retain(|link| link.is_tap && owner.owns(link, &network.bridge));
    Ok(all)
}
