//! Names and addresses of what this program makes.

use anyhow::Result;
use bulkhead_net_protocol::MacAddr;
use rustix::rand::{GetRandomFlags, getrandom};

/// What the names of this program's TAP devices begin with.
pub(crate) const TAP_PREFIX: &str = "bhtap";

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_addresses_differ_and_are_usable() {
        let (a, b) = (random_mac().unwrap(), random_mac().unwrap());
        assert!(a.is_unicast() && b.is_unicast());
        assert_ne!(a, b);
    }
}
