//! What is particular to the types of device: how long the configuration space is, how many queues are usual, and
//! which fields and features depend on what the monitor was told. Everything else is alike for all.

use virtio_bindings::{virtio_blk as blk, virtio_ids as ids, virtio_net as net};

use super::error::{Fault, Result};

/// A network card.
pub const TYPE_NET: u16 = ids::VIRTIO_ID_NET as u16;
/// A block device.
pub const TYPE_BLOCK: u16 = ids::VIRTIO_ID_BLOCK as u16;
/// A file system.
pub const TYPE_FS: u16 = ids::VIRTIO_ID_FS as u16;

const fn bits(features: &[u32]) -> u64 {
    let (mut all, mut at) = (0, 0);
    while at < features.len() {
        all |= 1 << features[at];
        at += 1;
    }
    all
}

const BLK_F_MQ: u64 = bits(&[blk::VIRTIO_BLK_F_MQ]);
const BLK_F_RO: u64 = bits(&[blk::VIRTIO_BLK_F_RO]);
const NET_F_MAC: u64 = bits(&[net::VIRTIO_NET_F_MAC]);
const NET_F_MTU: u64 = bits(&[net::VIRTIO_NET_F_MTU]);
/// The control queue and all that needs it.
const NET_CONTROL: u64 = bits(&[
    net::VIRTIO_NET_F_CTRL_VQ,
    net::VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
    net::VIRTIO_NET_F_CTRL_RX,
    net::VIRTIO_NET_F_CTRL_VLAN,
    net::VIRTIO_NET_F_CTRL_RX_EXTRA,
    net::VIRTIO_NET_F_CTRL_MAC_ADDR,
    net::VIRTIO_NET_F_GUEST_ANNOUNCE,
    net::VIRTIO_NET_F_MQ,
    net::VIRTIO_NET_F_DEVICE_STATS,
    net::VIRTIO_NET_F_VQ_NOTF_COAL,
    net::VIRTIO_NET_F_NOTF_COAL,
    net::VIRTIO_NET_F_HASH_REPORT,
    net::VIRTIO_NET_F_RSS,
]);
/// What describes fields that only a configuration space can fill.
const NET_FIELDS: u64 = bits(&[
    net::VIRTIO_NET_F_MAC,
    net::VIRTIO_NET_F_MTU,
    net::VIRTIO_NET_F_STATUS,
    net::VIRTIO_NET_F_MQ,
    net::VIRTIO_NET_F_SPEED_DUPLEX,
]);

const NET_MAC: usize = 0;
const NET_MAX_PAIRS: usize = 8;
const NET_MTU: usize = 10;
const BLK_NUM_QUEUES: usize = 34;
const FS_TAG_LEN: usize = 36;

/// Type number, name, bytes of configuration space, queues when nothing else is said.
const TYPES: &[(u16, &str, usize, u16)] = &[
    (TYPE_NET, "net", 24, 2),
    (TYPE_BLOCK, "blk", 60, 1),
    (3, "console", 12, 2),
    (4, "rng", 0, 1),
    (5, "balloon", 16, 2),
    (8, "scsi", 36, 3),
    (16, "gpu", 16, 2),
    (18, "input", 136, 2),
    (19, "vsock", 8, 3),
    (20, "crypto", 56, 2),
    (25, "sound", 12, 4),
    (TYPE_FS, "fs", 40, 2),
    (27, "pmem", 16, 1),
    (28, "rpmb", 3, 1),
    (32, "scmi", 0, 2),
    (34, "i2c", 0, 1),
    (36, "can", 2, 3),
    (41, "gpio", 8, 2),
    (45, "spi", 12, 1),
];

/// The number of a device type, given as a name (`blk`, `net`, `fs`, …) or as a number.
#[must_use]
pub fn device_type(name: &str) -> Option<u16> {
    let known = TYPES.iter().find(|(_, known, ..)| *known == name);
    let number = || {
        name.parse()
            .ok()
            .filter(|number| (1..=0x3f).contains(number))
    };
    known.map(|(number, ..)| *number).or_else(number)
}

/// How many queues a device of this type usually has.
#[must_use]
pub fn usual_queues(device_type: u16) -> Option<u16> {
    let known = TYPES.iter().find(|(number, ..)| *number == device_type);
    known.map(|(.., queues)| *queues)
}

/// What the monitor's user said about the device, as far as its type matters.
#[derive(Clone, Debug, Default)]
pub struct Particulars {
    /// A network card's address.
    pub mac: Option<[u8; 6]>,
    /// A network card's MTU.
    pub mtu: Option<u16>,
    /// A file system's name.
    pub tag: Option<String>,
    /// A disk that can be written is refused.
    pub read_only: bool,
}

pub(super) fn config_len(device_type: u16) -> usize {
    let known = TYPES.iter().find(|(number, ..)| *number == device_type);
    known.map_or(0, |(_, _, len, _)| *len)
}

/// How many queues, given what the user said and what the backend has (if it said so).
pub(super) fn queue_count(device_type: u16, wanted: Option<u16>, has: Option<u64>) -> Result<u16> {
    let usual = usual_queues(device_type);
    let wanted = wanted
        .or(usual)
        .or_else(|| has.and_then(|has| u16::try_from(has).ok()))
        .unwrap_or(1);
    let limit = match has {
        // Some backends count a network card's queues in pairs, and without the control queue.
        Some(pairs) if device_type == TYPE_NET => pairs.saturating_mul(2).saturating_add(1),
        Some(queues) => queues,
        None => u64::from(usual.unwrap_or(wanted)),
    };
    if wanted == 0 {
        return Err(Fault::Options("a device has at least one queue"));
    }
    if u64::from(wanted) > limit {
        let has = has.unwrap_or(limit);
        return Err(Fault::TooManyQueues { wanted, has });
    }
    Ok(wanted)
}

/// The features of a device of this type that make sense with so many queues and, `config` or not, a configuration space.
pub(super) fn features(
    device_type: u16,
    backend: u64,
    queues: u16,
    config: bool,
    particulars: &Particulars,
) -> Result<u64> {
    let mut features = backend;
    match device_type {
        TYPE_BLOCK if !config => return Err(Fault::Lacks("a configuration space (CONFIG)")),
        TYPE_BLOCK if particulars.read_only && backend & BLK_F_RO == 0 => {
            return Err(Fault::Options(
                "the disk is to be for reading only, and the backend lets it be written: start the backend with --read-only",
            ));
        }
        TYPE_BLOCK if queues == 1 => features &= !BLK_F_MQ,
        TYPE_NET => {
            if queues.is_multiple_of(2) {
                features &= !NET_CONTROL;
            }
            if !config {
                features &= !NET_FIELDS;
            }
            if particulars.mac.is_some() {
                features |= NET_F_MAC;
            }
            if particulars.mtu.is_some() {
                features |= NET_F_MTU;
            }
        }
        TYPE_FS if !config && particulars.tag.is_none() => {
            return Err(Fault::Lacks(
                "a configuration space (CONFIG), and no tag was given",
            ));
        }
        _ => {}
    }
    Ok(features)
}

/// Puts into the configuration space what the monitor knows better than the backend.
pub(super) fn adjust(
    device_type: u16,
    config: &mut [u8],
    queues: u16,
    particulars: &Particulars,
) -> Result<()> {
    let mut put = |at: usize, bytes: &[u8]| {
        for (to, byte) in config.iter_mut().skip(at).zip(bytes) {
            *to = *byte;
        }
    };
    match device_type {
        TYPE_BLOCK => put(BLK_NUM_QUEUES, &queues.to_le_bytes()),
        TYPE_NET => {
            put(NET_MAX_PAIRS, &(queues / 2).to_le_bytes());
            if let Some(mac) = &particulars.mac {
                put(NET_MAC, mac);
            }
            if let Some(mtu) = particulars.mtu {
                put(NET_MTU, &mtu.to_le_bytes());
            }
        }
        TYPE_FS => {
            if let Some(tag) = &particulars.tag {
                if tag.is_empty() || tag.len() > FS_TAG_LEN {
                    return Err(Fault::Options("a tag has 1 to 36 bytes"));
                }
                put(0, &[0; FS_TAG_LEN]);
                put(0, tag.as_bytes());
                put(
                    FS_TAG_LEN,
                    &u32::from(queues.saturating_sub(1)).to_le_bytes(),
                );
            }
        }
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_go_by_name_or_number() {
        assert_eq!(device_type("blk"), Some(2));
        assert_eq!(device_type("26"), Some(26));
        for none in ["", "disk", "0", "64", "-1", "2 "] {
            assert_eq!(device_type(none), None, "{none:?}");
        }
    }

    #[test]
    fn queues_are_as_wanted_if_the_backend_has_them() {
        assert_eq!(queue_count(TYPE_BLOCK, None, Some(4)).unwrap(), 1);
        assert_eq!(queue_count(TYPE_BLOCK, Some(4), Some(4)).unwrap(), 4);
        assert_eq!(queue_count(TYPE_NET, None, Some(1)).unwrap(), 2);
        assert_eq!(queue_count(60, None, Some(7)).unwrap(), 7);
        assert_eq!(queue_count(TYPE_NET, None, None).unwrap(), 2);
        let error = queue_count(TYPE_BLOCK, Some(5), Some(4)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "5 queues are too many: the backend has 4"
        );
        assert!(queue_count(TYPE_BLOCK, Some(2), None).is_err());
        assert!(queue_count(TYPE_BLOCK, Some(0), Some(4)).is_err());
    }

    #[test]
    fn a_network_card_has_the_address_it_was_given() {
        let particulars = Particulars {
            mac: Some([2, 0, 0, 0, 0, 9]),
            mtu: Some(9000),
            ..Particulars::default()
        };
        let mut config = [0xff; 24];
        adjust(TYPE_NET, &mut config, 2, &particulars).unwrap();
        assert_eq!(config[..6], [2, 0, 0, 0, 0, 9]);
        assert_eq!(config[8..12], [1, 0, 0x28, 0x23]);
        let features = features(TYPE_NET, NET_CONTROL | 1, 2, false, &particulars).unwrap();
        assert_eq!(features, NET_F_MAC | NET_F_MTU | 1);
    }

    #[test]
    fn a_block_device_needs_a_configuration_space() {
        let none = Particulars::default();
        assert!(features(TYPE_BLOCK, 0, 1, false, &none).is_err());
        assert_eq!(features(TYPE_BLOCK, BLK_F_MQ, 1, true, &none).unwrap(), 0);
        assert_eq!(
            features(TYPE_BLOCK, BLK_F_MQ, 2, true, &none).unwrap(),
            BLK_F_MQ
        );
    }

    #[test]
    fn a_disk_for_reading_only_is_one_that_the_backend_offers_so() {
        let read_only = Particulars {
            read_only: true,
            ..Particulars::default()
        };
        assert!(features(TYPE_BLOCK, 0, 1, true, &read_only).is_err());
        let offered = features(TYPE_BLOCK, BLK_F_RO, 1, true, &read_only).unwrap();
        assert_eq!(offered, BLK_F_RO);
    }

    #[test]
    fn a_tag_must_fit() {
        let tag = |tag: &str| Particulars {
            tag: Some(tag.into()),
            ..Particulars::default()
        };
        let mut config = [0xff; 40];
        adjust(TYPE_FS, &mut config, 2, &tag("share")).unwrap();
        assert_eq!(config[..8], *b"share\0\0\0");
        assert_eq!(config[36..], [1, 0, 0, 0]);
        assert!(adjust(TYPE_FS, &mut config, 2, &tag("")).is_err());
        assert!(adjust(TYPE_FS, &mut config, 2, &tag(&"x".repeat(37))).is_err());
    }
}
