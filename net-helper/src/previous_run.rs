//! Networks that a previous run has left because it was killed, and the guests that are still on them.
//!
//! No guest loses its network because the helper is started again. A network that guests are on stays exactly as it
//! was, whether it is on the command line or not; one without guests is removed unless it is on the command line. When
//! a network of the command line conflicts with one that guests are on, the start fails before anything is changed.

use anyhow::{Context, Result, bail};

use crate::identity::{Owner, TAP_PREFIX};
use crate::link::{Link, Links};
use crate::network::{Network, check_together};
use crate::state::{Record, StateDir};

/// Gives the record an owner if it has none, and marks the interfaces in it with that owner: versions before the alias
/// left them unmarked.
pub(crate) fn assign_owner(links: &mut Links, state: &StateDir, record: &mut Record) -> Result<()> {
    if !record.owner.is_unset() {
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
        let is_its_bridge = |link: &Link| network.owns_bridge() && link.index == bridge.index;
        for link in all
            .iter()
            .filter(|link| is_its_tap(link) || is_its_bridge(link))
        {
            links.set_identity(link.index, owner.identity(&network.bridge))?;
        }
    }
    record.owner = owner;
    state.write(record)
}

/// The networks of this run: those on the command line, and those of the previous run that guests are on.
pub(crate) fn with_networks_in_use(
    links: &mut Links,
    wanted: &[Network],
    record: &Record,
) -> Result<Vec<Network>> {
    let mut all = wanted.to_vec();
    for network in not_taken_over(&record.networks, wanted) {
        if !is_in_use(links, record, network)? {
            continue;
        }
        all.push(network.clone());
        if let Err(why) = check_together(&all) {
            let was = String::from(network.clone());
            bail!(
                "guests are on {network} of a run that was killed, and {why}: \
                 start with --network {was}, or end them first"
            );
        }
    }
    let added: Vec<_> = all.iter().skip(wanted.len()).map(name_and_bridge).collect();
    if !added.is_empty() {
        bulkhead_process::warn(&format!(
            "guests are on networks of a run that was killed: {} stay as they were \
             until this program is started without guests on them",
            added.join(", ")
        ));
    }
    Ok(all)
}

fn name_and_bridge(network: &Network) -> String {
    format!("{} ({})", network.name, network.bridge)
}

fn not_taken_over<'a>(
    previous: &'a [Network],
    wanted: &'a [Network],
) -> impl Iterator<Item = &'a Network> {
    let is_gone = |old: &&Network| !wanted.iter().any(|new| new.takes_over(old));
    previous.iter().filter(is_gone)
}

/// Whether guests are on a network: one of its TAP devices is open, even if the bridge has been removed, or another
/// interface is a port of the network's own bridge.
pub(crate) fn is_in_use(links: &mut Links, record: &Record, network: &Network) -> Result<bool> {
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

/// Removes what is left of networks that this run does not have, and takes them out of the record.
pub(crate) fn remove_all_but(
    networks: &[Network],
    links: &mut Links,
    record: &mut Record,
) -> Result<()> {
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

/// Removes a network's TAP devices, whichever bridge they are on, and its bridge if this program created it.
pub(crate) fn remove(links: &mut Links, record: &Record, network: &Network) -> Result<()> {
    for tap in taps(links, &record.owner, network)? {
        links.delete(tap.index)?;
    }
    match own_bridge(links, record, network)? {
        Some(bridge) => Ok(links.delete(bridge.index)?),
        None => Ok(()),
    }
}

/// The bridge that this program, or a previous run of it, has created for a network, even if somebody has given it
/// another name.
pub(crate) fn own_bridge(
    links: &mut Links,
    record: &Record,
    network: &Network,
) -> Result<Option<Link>> {
    let is_it = |link: &Link| record.is_bridge(link, network);
    match links.find(&network.bridge)?.filter(is_it) {
        None if network.owns_bridge() => Ok(links.all()?.into_iter().find(is_it)),
        found => Ok(found),
    }
}

/// The TAP devices that this program, or a previous run of it, has created for a network.
pub(crate) fn taps(links: &mut Links, owner: &Owner, network: &Network) -> Result<Vec<Link>> {
    let mut all = links.all()?;
    all.retain(|link| link.is_tap && owner.owns(link, &network.bridge));
    Ok(all)
}
