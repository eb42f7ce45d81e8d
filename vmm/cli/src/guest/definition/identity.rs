//! What tells a guest from others: its UUID and the MAC addresses of its cards.
//!
//! `define` makes them at random and writes them into the file. A guest without them in its definition has some that
//! depend only on names, so that they are the same each time.

use bulkhead_mac::MacAddr;
use uuid::Uuid;

use super::{Definition, Net};

/// The first half of the addresses that QEMU and libvirt give to cards.
pub(crate) const VENDOR: [u8; 3] = [0x52, 0x54, 0];

impl Definition {
    /// The guest's UUID.
    pub(crate) fn uuid(&self) -> Uuid {
        self.uuid.unwrap_or_else(|| {
            let half = |salt: &str| fnv1a(format!("{salt}/{}", self.name).as_bytes());
            let mut bytes = [0; 16];
            let (first, second) = bytes.split_at_mut(8);
            first.copy_from_slice(&half("uuid"));
            second.copy_from_slice(&half("uuid2"));
            uuid::Builder::from_custom_bytes(bytes).into_uuid()
        })
    }

    /// The MAC address of a card of this guest, the one with this index.
    pub(crate) fn mac(&self, net: &Net, index: usize) -> MacAddr {
        net.mac.unwrap_or_else(|| {
            let words = format!("{}/{}/{index}", self.name, net.network);
            let [a, b, c, ..] = fnv1a(words.as_bytes());
            let [x, y, z] = VENDOR;
            MacAddr::new([x, y, z, a, b, c])
        })
    }

    /// The MAC addresses of all cards.
    pub(crate) fn macs(&self) -> impl Iterator<Item = MacAddr> + '_ {
        let nets = self.nets.iter().enumerate();
        nets.map(|(index, net)| self.mac(net, index))
    }
}

/// The hash FNV-1a, which is the same on every host and in every version.
fn fnv1a(bytes: &[u8]) -> [u8; 8] {
    let step = |hash: u64, &byte: &u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(name: &str) -> Definition {
        let mut guest = Definition::new(name.into(), "/k".into());
        let card: Net = "default".parse().unwrap();
        guest.nets = vec![card.clone(), card];
        guest
    }

    #[test]
    fn a_card_keeps_its_address_and_no_two_share_one() {
        let first: Vec<_> = guest("g").macs().collect();
        assert_eq!(first, guest("g").macs().collect::<Vec<_>>());
        assert_ne!(first[0], first[1]);
        assert!(first[0].to_string().starts_with("52:54:00:"));
        assert!(!guest("h").macs().any(|mac| first.contains(&mac)));
    }

    #[test]
    fn a_guest_keeps_its_uuid_and_no_two_share_one() {
        let uuid = guest("g").uuid();
        assert_eq!(uuid, guest("g").uuid());
        assert_eq!(uuid.get_version_num(), 8);
        assert_ne!(uuid, guest("h").uuid());
    }
}
