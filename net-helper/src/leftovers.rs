//! What a run that was killed has left: networks, and guests on them.
//!
//! No guest loses its network because the helper is started again. A network that guests are still on stays as it was, in everything,
//! whether it is on the command line or not; one that nobody is on and nobody wants goes. Where a network of the command line is in the way
//! of one with guests, nothing is changed at all.

use anyhow::{Context, Result, bail};

use crate::host::{Port, Standing};
use crate::identity::TAP_PREFIX;
use crate::link::{Link, Links};
use crate::network::{Network, check_together};

/// The networks to stand: those that are wanted, and of those that were left the ones that guests are on.
pub(crate) fn with_used(
    links: &mut Links,
    wanted: &[Network],
    left: &[Network],
) -> Result<Vec<Network>> {
    let mut all = wanted.to_vec();
    for network in not_taken_over(left, wanted) {
        if !is_used(links, network)? {
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

/// Whether guests are on a network: somebody has a TAP device open, or has made another interface a port of the network's own bridge.
pub(crate) fn is_used(links: &mut Links, network: &Network) -> Result<bool> {
    let Some(bridge) = links.find(&network.bridge)? else {
        return Ok(false);
    };
    let uses = |port: &Link| match is_tap(port) {
        true => port.has_carrier,
        false => network.owns_bridge(),
    };
    Ok(links.ports(bridge.index)?.iter().any(uses))
}

/// Removes what was left of networks that are not to stand; the rest.
pub(crate) fn clear(
    links: &mut Links,
    left: Vec<Network>,
    networks: &[Network],
) -> Result<Vec<Network>> {
    for network in not_taken_over(&left, networks) {
        let Some(bridge) = links.find(&network.bridge)? else {
            continue;
        };
        let removed = match network.owns_bridge() {
            true => remove_bridge(links, &bridge),
            false => remove_taps(links, bridge.index),
        };
        removed.with_context(|| format!("cannot remove what was left of {network}"))?;
    }
    let is_wanted = |old: &Network| networks.iter().any(|new| new.takes_over(old));
    Ok(left.into_iter().filter(is_wanted).collect())
}

/// Takes over the TAP devices that clients of a run that was killed still have, and removes those that nobody has.
pub(crate) fn adopt(links: &mut Links, standing: &Standing, ports: &mut Vec<Port>) -> Result<()> {
    for link in taps(links, standing.bridge)? {
        if !link.has_carrier {
            links.delete(link.index)?;
        } else if ports.iter().all(|port| port.index != link.index) {
            ports.push(Port {
                index: link.index,
                network: standing.network.name.clone(),
            });
        }
    }
    Ok(())
}

/// Removes a bridge and the TAP devices of this program that are still its ports.
pub(crate) fn remove_bridge(links: &mut Links, bridge: &Link) -> Result<()> {
    if !bridge.is_bridge {
        bail!("{} is not a bridge any more", bridge.name);
    }
    remove_taps(links, bridge.index)?;
    Ok(links.delete(bridge.index)?)
}

fn remove_taps(links: &mut Links, bridge: u32) -> Result<()> {
    for port in taps(links, bridge)? {
        links.delete(port.index)?;
    }
    Ok(())
}

/// This program's TAP devices that are ports of a bridge.
fn taps(links: &mut Links, bridge: u32) -> Result<Vec<Link>> {
    let mut ports = links.ports(bridge)?;
    ports.retain(is_tap);
    Ok(ports)
}

fn is_tap(link: &Link) -> bool {
    link.name.starts_with(TAP_PREFIX)
}
