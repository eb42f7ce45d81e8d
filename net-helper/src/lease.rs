//! A TAP device for a client: validate, act, hand over.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use bulkhead_net_protocol::{
    MAX_QUEUES, MacAddr, Refusal, RefusalKind, Subnet, TapInfo, TapRequest,
};
use tap::{InterfaceName, Options, Tap};

use crate::host::{Host, Port, Standing};
use crate::identity::{TAP_PREFIX, random_mac};

/// The smallest MTU that IPv4 knows, and the largest that a TAP device has.
const MTU: std::ops::RangeInclusive<u32> = 68..=65521;

/// A TAP device in a client's hands.
#[derive(Debug)]
pub(crate) struct Lease {
    index: u32,
    network: String,
    mac: MacAddr,
}

/// What a client is given.
#[derive(Debug)]
pub(crate) struct Grant {
    pub(crate) lease: Lease,
    pub(crate) info: TapInfo,
    /// To be handed over, and then closed here: the device itself is removed when the lease ends.
    pub(crate) queues: Vec<Tap>,
}

/// A request that makes sense.
struct Wanted {
    standing: Standing,
    mac: MacAddr,
    queues: u16,
    mtu: u16,
}

impl Lease {
    /// Makes what is asked for.
    pub(crate) fn grant<'a>(
        request: &TapRequest,
        host: &mut Host,
        others: impl Iterator<Item = &'a Lease>,
    ) -> Result<Grant, Refusal> {
        let wanted = validate(request, host, others)?;
        act(wanted, host).map_err(|error| refusal(RefusalKind::System, format!("{error:#}")))
    }

    /// Ends it: the device's index, for [`Reclaim`](crate::reclaim::Reclaim).
    pub(crate) fn end(self, host: &mut Host) -> u32 {
        host.ports.retain(|port| port.index != self.index);
        self.index
    }
}

fn validate<'a>(
    request: &TapRequest,
    host: &Host,
    others: impl Iterator<Item = &'a Lease>,
) -> Result<Wanted, Refusal> {
    let invalid = |why: String| Err(refusal(RefusalKind::Invalid, why));
    let name = &request.network;
    let Some(standing) = host.networks.iter().find(|s| s.network.name == *name) else {
        let known: Vec<_> = host
            .networks
            .iter()
            .map(|s| s.network.name.as_str())
            .collect();
        let why = format!(
            "bulkhead-net-helper has no network {name:?}; it has {}",
            known.join(", ")
        );
        return Err(refusal(RefusalKind::UnknownNetwork, why));
    };
    if !(1..=MAX_QUEUES).contains(&request.queues) {
        return invalid(format!(
            "{} queues: from 1 to {MAX_QUEUES} can be had",
            request.queues
        ));
    }
    let mtu = request.mtu.map_or(standing.mtu, u32::from);
    let Some(mtu) = MTU
        .contains(&mtu)
        .then(|| u16::try_from(mtu).ok())
        .flatten()
    else {
        return invalid(format!(
            "an MTU of {mtu}: from {} to {} can be had",
            MTU.start(),
            MTU.end()
        ));
    };
    let taken = others.filter(|lease| lease.network == *name);
    let taken: BTreeSet<_> = taken.map(|lease| lease.mac.octets()).collect();
    let mac = match request.mac {
        Some(mac) if taken.contains(&mac.octets()) => {
            return invalid(format!("MAC address {mac} is in use on network {name}"));
        }
        Some(mac) => mac,
        None => free_mac(&taken, random_mac)
            .map_err(|e| refusal(RefusalKind::System, format!("{e:#}")))?,
    };
    Ok(Wanted {
        standing: standing.clone(),
        mac,
        queues: request.queues,
        mtu,
    })
}

/// An address that nobody has. There are some 16 million, and a thousand clients at the most.
fn free_mac(taken: &BTreeSet<[u8; 6]>, random: impl Fn() -> Result<MacAddr>) -> Result<MacAddr> {
    loop {
        let mac = random()?;
        if !taken.contains(&mac.octets()) {
            return Ok(mac);
        }
    }
}

fn act(wanted: Wanted, host: &mut Host) -> Result<Grant> {
    let Wanted {
        standing,
        mac,
        queues,
        mtu,
    } = wanted;
    let bridge = standing.bridge;
    let bridge = bridge.with_context(|| format!("bridge {} is gone", standing.network.bridge))?;
    let mut options = Options::VNET_HDR;
    options.set(Options::MULTI_QUEUE, queues > 1);
    // Until it is attached, the device goes away by itself if anything fails.
    let first = Tap::create(&InterfaceName::new(TAP_PREFIX)?, options)?;
    first.set_vnet_hdr_len(tap::VNET_HDR_LEN)?;
    let mut taps = vec![first];
    for _ in 1..queues {
        let more = taps.first().map(Tap::another_queue).transpose()?;
        taps.extend(more);
    }
    let Some(name) = taps.first().map(|tap| tap.name().clone()) else {
        anyhow::bail!("no TAP device")
    };
    let alias = Some(host.alias(&standing.network.bridge));
    let index = host
        .links
        .attach(&name, bridge, host_side(mac), mtu.into(), alias)?;
    // From here on it is this program's to remove: the kernel would keep everybody else waiting for each device that a client closes.
    let kept = taps.first().map(|tap| tap.set_persistent(true));
    kept.transpose()?;
    let network = standing.network;
    host.ports.push(Port {
        index,
        is_adopted: false,
    });
    let info = TapInfo {
        interface: name.to_string(),
        mac,
        mtu,
        bridge: network.bridge.to_string(),
        subnet: network.addressing.map(|a| Subnet {
            network: a.subnet.network(),
            prefix: a.subnet.prefix(),
            gateway: a.subnet.gateway(),
        }),
    };
    Ok(Grant {
        lease: Lease {
            index,
            network: network.name,
            mac,
        },
        info,
        queues: taps,
    })
}

/// The host's end must not have the guest's address, or the bridge would keep the guest's frames for the host.
fn host_side(guest: MacAddr) -> [u8; 6] {
    let [first, a, b, c, d, e] = guest.octets();
    [if first == 0xfe { 0xfa } else { 0xfe }, a, b, c, d, e]
}

pub(crate) fn refusal(kind: RefusalKind, message: String) -> Refusal {
    Refusal { kind, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_random_address_is_nobody_elses() {
        let mac = |last| MacAddr::new([0x52, 0x54, 0, 0, 0, last]);
        let taken = [1, 2].map(|last| mac(last).octets()).into();
        let last = std::cell::Cell::new(0);
        let next = || {
            last.set(last.get() + 1);
            Ok(mac(last.get()))
        };
        assert_eq!(free_mac(&taken, next).unwrap(), mac(3));
    }

    #[test]
    fn the_hosts_end_never_has_the_guests_address() {
        for first in [0x52, 0xfe, 0xfa] {
            let guest = MacAddr::new([first, 1, 2, 3, 4, 5]);
            assert_ne!(host_side(guest), guest.octets());
        }
    }
}
