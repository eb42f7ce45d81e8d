//! IPv4 networks.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// An IPv4 subnet with addresses for the host and at least one guest: its prefix has 8 to 30 bits, and the bits after
/// it are 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ipv4Subnet {
    network: u32,
    prefix: u8,
}

impl Ipv4Subnet {
    pub(crate) const fn from_parts(network: [u8; 4], prefix: u8) -> Self {
        Ipv4Subnet {
            network: u32::from_be_bytes(network),
            prefix,
        }
    }

    /// The address of the subnet itself.
    pub(crate) fn network(self) -> Ipv4Addr {
        Ipv4Addr::from(self.network)
    }

    /// The prefix length, in bits.
    pub(crate) fn prefix(self) -> u8 {
        self.prefix
    }

    /// The prefix as a mask.
    pub(crate) fn mask(self) -> Ipv4Addr {
        Ipv4Addr::from(mask(self.prefix))
    }

    /// The host's address: the first.
    pub(crate) fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::from(self.network | 1)
    }

    /// The broadcast address: the last.
    pub(crate) fn broadcast(self) -> Ipv4Addr {
        Ipv4Addr::from(self.last())
    }

    /// The first and the last of the guests' addresses.
    pub(crate) fn guests(self) -> (Ipv4Addr, Ipv4Addr) {
        (
            Ipv4Addr::from(self.network | 2),
            Ipv4Addr::from(self.last() & !1),
        )
    }

    /// How many addresses there are for guests.
    pub(crate) fn guest_count(self) -> u32 {
        (self.last() - self.network).saturating_sub(2)
    }

    /// Whether two subnets have an address in common.
    pub(crate) fn overlaps(self, other: Ipv4Subnet) -> bool {
        self.overlaps_prefix(other.network(), other.prefix)
    }

    /// The same for a prefix of any length, as routes and addresses have.
    pub(crate) fn overlaps_prefix(self, address: Ipv4Addr, prefix: u8) -> bool {
        let common = mask(self.prefix.min(prefix));
        self.network & common == address.to_bits() & common
    }

    fn last(self) -> u32 {
        self.network | !mask(self.prefix)
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX
        .checked_shl(32u32.saturating_sub(prefix.into()))
        .unwrap_or(0)
}

impl FromStr for Ipv4Subnet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text
            .split_once('/')
            .and_then(|(a, p)| Some((a.parse::<Ipv4Addr>().ok()?, p.parse::<u8>().ok()?)));
        let (address, prefix) = parts.ok_or_else(|| {
            format!("subnet {text:?} is not an IPv4 network like 192.168.124.0/24")
        })?;
        if !(8..=30).contains(&prefix) {
            return Err(format!("subnet {text}: the prefix must be 8 to 30 bits"));
        }
        let subnet = Ipv4Subnet {
            network: address.to_bits() & mask(prefix),
            prefix,
        };
        if subnet.network() != address {
            return Err(format!(
                "subnet {text} is not a network's address; did you mean {subnet}?"
            ));
        }
        if address.is_loopback() || address.is_multicast() || address.octets().starts_with(&[0]) {
            return Err(format!("subnet {text} cannot be used for guests"));
        }
        Ok(subnet)
    }
}

impl fmt::Display for Ipv4Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network(), self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(text: &str) -> Ipv4Subnet {
        text.parse().unwrap()
    }

    #[test]
    fn its_addresses() {
        let net = subnet("192.168.124.0/24");
        assert_eq!(net.gateway(), Ipv4Addr::new(192, 168, 124, 1));
        assert_eq!(
            net.guests(),
            (
                Ipv4Addr::new(192, 168, 124, 2),
                Ipv4Addr::new(192, 168, 124, 254)
            )
        );
        assert_eq!(net.broadcast(), Ipv4Addr::new(192, 168, 124, 255));
        assert_eq!(net.mask(), Ipv4Addr::new(255, 255, 255, 0));
        assert_eq!(net.guest_count(), 253);
    }

    #[test]
    fn the_smallest_has_room_for_one_guest() {
        let net = subnet("10.0.0.4/30");
        assert_eq!(
            net.guests(),
            (Ipv4Addr::new(10, 0, 0, 6), Ipv4Addr::new(10, 0, 0, 6))
        );
        assert_eq!(net.guest_count(), 1);
    }

    #[test]
    fn overlap_is_symmetric_and_exact() {
        let net = subnet("192.168.124.0/24");
        assert!(net.overlaps(subnet("192.168.0.0/16")) && subnet("192.168.0.0/16").overlaps(net));
        assert!(!net.overlaps(subnet("192.168.125.0/24")));
        assert!(net.overlaps_prefix(Ipv4Addr::new(192, 168, 124, 77), 32));
        assert!(!net.overlaps_prefix(Ipv4Addr::new(192, 168, 125, 0), 32));
        assert!(net.overlaps_prefix(Ipv4Addr::UNSPECIFIED, 0), "everything");
    }

    #[test]
    fn what_is_no_network_is_refused_with_a_reason() {
        for (text, why) in [
            ("192.168.124.1/24", "did you mean 192.168.124.0/24?"),
            ("10.0.0.0/31", "8 to 30"),
            ("10.0.0.0/7", "8 to 30"),
            ("10.0.0.0", "not an IPv4 network"),
            ("fd00::/64", "not an IPv4 network"),
            ("127.0.0.0/8", "cannot be used"),
            ("224.0.0.0/24", "cannot be used"),
            ("0.0.0.0/8", "cannot be used"),
        ] {
            let error = text.parse::<Ipv4Subnet>().unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
