//! A TAP device for a client: validate the request, create the device, hand it over.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use bulkhead_mac::MacAddr;
use bulkhead_net_protocol::{
    MAX_QUEUES, Refusal, RefusalKind, Subnet, TapInfo, TapRequest, tap_mac,
};
use tap::{InterfaceName, Options, Tap};

use crate::host::{ActiveNetwork, Host, Port};
use crate::identity::{TAP_PREFIX, random_mac};

/// The smallest MTU of IPv4 (RFC 791), and the largest of a TAP device.
const MTU: std::ops::RangeInclusive<u32> = 68..=65521;

/// A TAP device that a client has.
#[derive(Debug)]
pub(crate) struct Lease {
    index: u32,
    network: String,
    mac: MacAddr,
}

/// What a client gets.
#[derive(Debug)]
pub(crate) struct Grant {
    pub(crate) lease: Lease,
    pub(crate) info: TapInfo,
    /// To be sent to the client and then closed here. The device itself exists until the lease ends.
    pub(crate) queues: Vec<Tap>,
}

/// A valid request.
struct Wanted {
    active: ActiveNetwork,
    mac: MacAddr,
    queues: u16,
    mtu: u16,
}

impl Lease {
    /// Creates the TAP device that a client requests.
    pub(crate) fn grant<'a>(
        request: &TapRequest,
        host: &mut Host,
        others: impl Iterator<Item = &'a Lease>,
    ) -> Result<Grant, Refusal> {
        let wanted = validate(request, host, others)?;
        create(wanted, host).map_err(|error| refusal(RefusalKind::System, format!("{error:#}")))
    }

    /// Ends the lease. Returns the device's index, for [`Reclaim`](crate::reclaim::Reclaim).
    pub(crate) fn end(self, host: &mut Host) -> u32 {
        host.ports.retain(|port| port.index != self.index);
        self.index
    }
}

impl Host {
    /// The network that a client names.
    pub(crate) fn network(&self, name: &str) -> Result<&ActiveNetwork, Refusal> {
        let mut networks = self.networks.iter();
        networks.find(|s| s.network.name == name).ok_or_else(|| {
            let known = self.networks.iter().map(|s| s.network.name.as_str());
            let known: Vec<_> = known.collect();
            let why = format!(
                "bulkhead-net-helper has no network {name:?}; it has {}",
                known.join(", ")
            );
            refusal(RefusalKind::UnknownNetwork, why)
        })
    }
}

fn validate<'a>(
    request: &TapRequest,
    host: &Host,
    others: impl Iterator<Item = &'a Lease>,
) -> Result<Wanted, Refusal> {
    let invalid = |why: String| Err(refusal(RefusalKind::Invalid, why));
    let name = &request.network;
    let active = host.network(name)?;
    if !(1..=MAX_QUEUES).contains(&request.queues) {
        return invalid(format!(
            "{} queues: from 1 to {MAX_QUEUES} can be had",
            request.queues
        ));
    }
    let mtu = request.mtu.map_or(active.mtu, u32::from);
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
        active: active.clone(),
        mac,
        queues: request.queues,
        mtu,
    })
}

/// A random address that is not taken. There are 16 million of them for at most a thousand clients, so the loop is
/// short.
fn free_mac(taken: &BTreeSet<[u8; 6]>, random: impl Fn() -> Result<MacAddr>) -> Result<MacAddr> {
    loop {
        let mac = random()?;
        if !taken.contains(&mac.octets()) {
            return Ok(mac);
        }
    }
}

fn create(wanted: Wanted, host: &mut Host) -> Result<Grant> {
    let Wanted {
        active,
        mac,
        queues,
        mtu,
    } = wanted;
    let bridge = active.bridge;
    let bridge = bridge.with_context(|| format!("bridge {} is gone", active.network.bridge))?;
    let mut options = Options::VNET_HDR;
    options.set(Options::MULTI_QUEUE, queues > 1);
    // The device is not persistent yet: if a step fails, the kernel removes it when its file closes.
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
    let identity = Some(host.identity(&active.network.bridge));
    let index = host
        .links
        .attach(&name, bridge, tap_mac(mac).octets(), mtu.into(), identity)?;
    // From here on this program removes the device, in batches. Otherwise the kernel would remove each one when its
    // client closes it, and every other request for interfaces would wait for that.
    let made_persistent = taps.first().map(|tap| tap.set_persistent(true));
    made_persistent.transpose()?;
    let network = active.network;
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
}
