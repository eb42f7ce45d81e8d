//! Names and addresses of the interfaces that this program creates, and the alias and the group that mark them as its
//! own.

use std::io;

use anyhow::Result;
use bulkhead_mac::MacAddr;
use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Deserialize, Serialize};
use tap::InterfaceName;

use crate::link::{Identity, Link, Links};

/// The beginning of the names of this program's TAP devices.
pub(crate) const TAP_PREFIX: &str = "bhtap";

/// The beginning of the aliases of this program's interfaces.
const ALIAS_PREFIX: &str = "bulkhead-net-helper ";

/// A MAC address of the range that QEMU and libvirt use for guests.
pub(crate) fn random_mac() -> Result<MacAddr> {
    let mut bytes = [0; 3];
    getrandom(&mut bytes, GetRandomFlags::empty())?;
    let [a, b, c] = bytes;
    Ok(MacAddr::new([0x52, 0x54, 0, a, b, c]))
}

/// An interface group (`IFLA_GROUP`) that no other interface is in. It is odd, and an owner's group is even.
pub(crate) fn random_group() -> Result<u32> {
    let mut bytes = [0; 4];
    getrandom(&mut bytes, GetRandomFlags::empty())?;
    Ok(u32::from_ne_bytes(bytes) | 1 << 31 | 1)
}

/// Distinguishes this program's interfaces from others with the same name or index. It is a random number, which the
/// state folder keeps. The alias of each interface (`ip link` shows it) contains it and the name of the bridge that the
/// interface is, or is a port of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Owner(String);

impl Owner {
    pub(crate) fn random() -> Result<Self> {
        let mut bytes = [0; 16];
        getrandom(&mut bytes, GetRandomFlags::empty())?;
        Ok(Owner(format!("{:032x}", u128::from_ne_bytes(bytes))))
    }

    /// Whether the record is new or an earlier version's, which had no owners. Such an owner owns no interface.
    pub(crate) fn is_unset(&self) -> bool {
        self.0.is_empty()
    }

    fn alias(&self, bridge: &InterfaceName) -> String {
        format!("{ALIAS_PREFIX}{} {bridge}", self.0)
    }

    /// The group of this owner's interfaces: a part of the random number.
    pub(crate) fn group(&self) -> u32 {
        let digits = self.0.get(..8).unwrap_or_default();
        let number = u32::from_str_radix(digits, 16).unwrap_or_default();
        (number | 1 << 31) & !1
    }

    /// The marks of a bridge and of the TAP devices that are created as its ports.
    pub(crate) fn identity(&self, bridge: &InterfaceName) -> Identity {
        Identity {
            alias: self.alias(bridge),
            group: self.group(),
        }
    }

    /// Whether an interface is a TAP device that this owner has created, for any bridge.
    pub(crate) fn owns_tap(&self, link: &Link) -> bool {
        let rest = link.alias.strip_prefix(ALIAS_PREFIX);
        let rest = rest.and_then(|rest| rest.strip_prefix(&self.0));
        link.is_tap && !self.is_unset() && rest.is_some_and(|rest| rest.starts_with(' '))
    }

    /// The TAP device with this index, if this owner has created it: after a device has been removed, the kernel can
    /// give its index to another.
    pub(crate) fn tap(&self, links: &mut Links, index: u32) -> io::Result<Option<Link>> {
        Ok(links.by_index(index)?.filter(|link| self.owns_tap(link)))
    }

    /// Whether an interface is the bridge that this owner has created, or was created as a port of that bridge.
    pub(crate) fn owns(&self, link: &Link, bridge: &InterfaceName) -> bool {
        !self.is_unset() && link.alias == self.alias(bridge)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_is_its_owners_for_one_bridge() {
        let (owner, other) = (Owner::random().unwrap(), Owner::random().unwrap());
        let [a, b] = ["a0", "b0"].map(|name| InterfaceName::new(name).unwrap());
        let named = |alias| Link {
            alias,
            ..Link::default()
        };
        assert!(owner.owns(&named(owner.alias(&a)), &a));
        assert!(!owner.owns(&named(owner.alias(&b)), &a));
        assert!(!owner.owns(&named(other.alias(&a)), &a));
        let tap = |alias| Link {
            is_tap: true,
            ..named(alias)
        };
        assert!(owner.owns_tap(&tap(owner.alias(&a))) && owner.owns_tap(&tap(owner.alias(&b))));
        assert!(!owner.owns_tap(&named(owner.alias(&a))));
        assert!(!owner.owns_tap(&tap(other.alias(&a))));
        let nobody = Owner::default();
        assert!(!nobody.owns_tap(&tap(nobody.alias(&a))));
        assert!(!nobody.owns(&named(nobody.alias(&a)), &a));
    }

    #[test]
    fn random_addresses_differ_and_are_usable() {
        let (a, b) = (random_mac().unwrap(), random_mac().unwrap());
        assert!(a.is_unicast() && b.is_unicast());
        assert_ne!(a, b);
    }
}
