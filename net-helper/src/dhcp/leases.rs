//! The leases that dnsmasq has given, as it notes them in its file: a line `EXPIRY MAC ADDRESS NAME CLIENT` each.
//!
//! A dnsmasq that was taken over can write anything there, so the file is read as what it may say, not believed: only
//! addresses of the network's own subnet are returned, and a bounded part is read.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Read};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use bulkhead_mac::MacAddr;
use bulkhead_net_protocol::{Addresses, MAX_ADDRESSES};

use super::dnsmasq::LEASES;
use crate::network::Network;
use crate::state::open_regular;
use crate::subnet::Ipv4Subnet;

/// The most that is read: the leases of the largest subnet with DHCP.
const MAX_BYTES: u64 = 8 << 20;

/// The folder of a network's leases, in the state folder.
pub(super) fn folder(network: &Network, state: &Path) -> PathBuf {
    state.join(format!("{}.leases", network.name))
}

/// The addresses that the guest with this MAC address has on a network.
pub(crate) fn addresses(network: &Network, mac: MacAddr, state: &Path) -> Result<Addresses> {
    let Some(addressing) = network.addressing else {
        let (addresses, prefix) = (Vec::new(), 0);
        return Ok(Addresses { addresses, prefix });
    };
    let subnet = addressing.subnet;
    let text = match addressing.dhcp {
        true => read(&folder(network, state).join(LEASES))?,
        false => String::new(),
    };
    Ok(Addresses {
        addresses: of_guest(&text, mac, subnet, now()),
        prefix: subnet.prefix(),
    })
}

fn read(path: &Path) -> Result<String> {
    let shown = path.display();
    let file = match open_regular(path, OpenOptions::new().read(true)) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(String::new()),
        file => file.with_context(|| format!("cannot open {shown}"))?,
    };
    let mut bytes = Vec::new();
    file.take(MAX_BYTES)
        .read_to_end(&mut bytes)
        .with_context(|| format!("cannot read {shown}"))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs())
}

fn of_guest(text: &str, mac: MacAddr, subnet: Ipv4Subnet, now: u64) -> Vec<Ipv4Addr> {
    let found = text.lines().filter_map(|line| {
        let mut words = line.split(' ');
        let expiry: u64 = words.next()?.parse().ok()?;
        let is_guests = words.next()?.parse() == Ok(mac);
        let address: Ipv4Addr = words.next()?.parse().ok()?;
        // 0 stands for a lease without an end.
        let holds = expiry == 0 || expiry > now;
        (is_guests && holds && subnet.overlaps_prefix(address, 32)).then_some(address)
    });
    found.take(MAX_ADDRESSES).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_has_the_leases_with_its_address_that_hold() {
        let mac: MacAddr = "52:54:00:00:00:01".parse().unwrap();
        let subnet: Ipv4Subnet = "192.168.124.0/24".parse().unwrap();
        let text = "1000 52:54:00:00:00:01 192.168.124.7 name 01:52:54:00:00:00:01\n\
                    99 52:54:00:00:00:01 192.168.124.8 * *\n\
                    0 52:54:00:00:00:01 192.168.124.9 * *\n\
                    1000 52:54:00:00:00:02 192.168.124.10 * *\n\
                    1000 52:54:00:00:00:01 10.0.0.1 * *\n\
                    duid 00:01:00:01\n\
                    1000 52:54:00:00:00:01 192.168.124\n\
                    1000\n\n\
                    99999999999999999999999 52:54:00:00:00:01 192.168.124.11 * *\n";
        let found = of_guest(text, mac, subnet, 100);
        let expected: [Ipv4Addr; 2] = [[192, 168, 124, 7].into(), [192, 168, 124, 9].into()];
        assert_eq!(found, expected);
        let many: String = (1..=100)
            .map(|n| format!("0 52:54:00:00:00:01 192.168.124.{n} * *\n"))
            .collect();
        assert_eq!(of_guest(&many, mac, subnet, 100).len(), MAX_ADDRESSES);
    }
}
