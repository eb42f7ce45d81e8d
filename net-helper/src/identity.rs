//! Names and addresses of what this program makes.

use anyhow::Result;
use bulkhead_net_protocol::MacAddr;
use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Deserialize, Serialize};
use tap::InterfaceName;

use crate::link::Link;

/// What the names of this program's TAP devices begin with.
pub(crate) const TAP_PREFIX: &str = "bhtap";

/// What the aliases of this program's interfaces begin with.
const PREFIX: &str = "bulkhead-net-helper ";

/// An address of QEMU's range, as guests of KVM have it.
pub(crate) fn random_mac() -> Result<MacAddr> {
    let mut bytes = [0; 3];
    getrandom(&mut bytes, GetRandomFlags::empty())?;
    let [a, b, c] = bytes;
    Ok(MacAddr::new([0x52, 0x54, 0, a, b, c]))
}

/// A group that no other interface is in.
pub(crate) fn random_group() -> Result<u32> {
    let mut bytes = [0; 4];
    getrandom(&mut bytes, GetRandomFlags::empty())?;
    Ok(u32::from_ne_bytes(bytes) | 1 << 31)
}

/// Tells this program's interfaces from others of the same name or number. It is random, in the state folder, and in the alias of each
/// interface (`ip link` shows it) beside the bridge that the interface is, or is a port of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Owner(String);

impl Owner {
    pub(crate) fn random() -> Result<Self> {
        let mut bytes = [0; 16];
        getrandom(&mut bytes, GetRandomFlags::empty())?;
        Ok(Owner(format!("{:032x}", u128::from_ne_bytes(bytes))))
    }

    /// Of a record that nobody has written, or an older version: nothing is known to be its own.
    pub(crate) fn is_nobody(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn alias(&self, bridge: &InterfaceName) -> String {
        format!("{PREFIX}{} {bridge}", self.0)
    }

    /// Whether an interface is a TAP device that was made for a client, of any bridge.
    pub(crate) fn has_made(&self, link: &Link) -> bool {
        let rest = link.alias.strip_prefix(PREFIX);
        let rest = rest.and_then(|rest| rest.strip_prefix(&self.0));
        link.is_tap && !self.is_nobody() && rest.is_some_and(|rest| rest.starts_with(' '))
    }

    /// Whether an interface is that bridge, or was made to be a port of it.
    pub(crate) fn owns(&self, link: &Link, bridge: &InterfaceName) -> bool {
        !self.is_nobody() && link.alias == self.alias(bridge)
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
        assert!(owner.has_made(&tap(owner.alias(&a))) && owner.has_made(&tap(owner.alias(&b))));
        assert!(!owner.has_made(&named(owner.alias(&a))));
        assert!(!owner.has_made(&tap(other.alias(&a))));
        let nobody = Owner::default();
        assert!(!nobody.has_made(&tap(nobody.alias(&a))));
        assert!(!nobody.owns(&named(nobody.alias(&a)), &a));
    }

    #[test]
    fn random_addresses_differ_and_are_usable() {
        let (a, b) = (random_mac().unwrap(), random_mac().unwrap());
        assert!(a.is_unicast() && b.is_unicast());
        assert_ne!(a, b);
    }
}
