//! What differs between the types of device: the length of the configuration space, the usual number of queues, and the
//! fields and features that depend on the configuration. Everything else is the same for all types.

use bulkhead_mac::MacAddr;
use virtio_bindings::{virtio_blk as blk, virtio_ids as ids, virtio_net as net};

use super::error::{Fault, Result};

/// A network card.
pub const TYPE_NET: u16 = ids::VIRTIO_ID_NET as u16;
/// A block device.
pub const TYPE_BLOCK: u16 = ids::VIRTIO_ID_BLOCK as u16;
/// A file system.
pub const TYPE_FS: u16 = ids::VIRTIO_ID_FS as u16;

const TYPE_CONSOLE: u16 = ids::VIRTIO_ID_CONSOLE as u16;
const TYPE_BALLOON: u16 = ids::VIRTIO_ID_BALLOON as u16;
const TYPE_SCSI: u16 = ids::VIRTIO_ID_SCSI as u16;
const TYPE_INPUT: u16 = ids::VIRTIO_ID_INPUT as u16;
const TYPE_CRYPTO: u16 = ids::VIRTIO_ID_CRYPTO as u16;
const TYPE_SCMI: u16 = ids::VIRTIO_ID_SCMI as u16;
const TYPE_GPIO: u16 = ids::VIRTIO_ID_GPIO as u16;

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
const NET_F_MQ: u64 = bits(&[net::VIRTIO_NET_F_MQ]);
const NET_F_MTU: u64 = bits(&[net::VIRTIO_NET_F_MTU]);
/// The control queue and the features that need it.
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
/// Features whose fields only a backend with a configuration space can fill.
const NET_FIELDS: u64 = bits(&[
    net::VIRTIO_NET_F_MAC,
    net::VIRTIO_NET_F_MTU,
    net::VIRTIO_NET_F_STATUS,
    net::VIRTIO_NET_F_MQ,
    net::VIRTIO_NET_F_SPEED_DUPLEX,
]);

/// It needs the control queues and a pair for the second port.
const CONSOLE_F_MULTIPORT: u64 = 1 << 1;
/// The features of the balloon's third to fifth queue, in that order (virtio 1.2 §5.5.2): statistics, free pages,
/// reporting. Each queue exists if its feature was negotiated.
const BALLOON_QUEUES: [u64; 3] = [1 << 1, 1 << 3, 1 << 5];
/// The notification queue of a file system (virtio 1.2 §5.11.2), which is its second.
const FS_F_NOTIFICATION: u64 = 1 << 0;
/// Events of a GPIO device (§5.18.2) and of an SCMI device (§5.17.2) come by their second queue.
const GPIO_F_IRQ: u64 = 1 << 0;
const SCMI_F_P2A_CHANNELS: u64 = 1 << 0;

const CONSOLE_MAX_PORTS: usize = 4;
const SCSI_NUM_QUEUES: usize = 0;
const CRYPTO_MAX_DATA_QUEUES: usize = 4;
const FS_NUM_REQUEST_QUEUES: usize = 36;
/// The offset of `writeback`, the one byte of a disk's configuration that a driver writes.
const BLK_WCE: u32 = 32;
/// The length of `select` and `subsel`, the fields of an input device's configuration that a driver writes.
const INPUT_SELECTION: u32 = 2;

const NET_MAC: usize = 0;
const NET_MAX_PAIRS: usize = 8;
const NET_MTU: usize = 10;
const BLK_NUM_QUEUES: usize = 34;
const FS_TAG_LEN: usize = 36;

/// Type number, name, length of the configuration space, usual number of queues.
const TYPES: &[(u16, &str, usize, u16)] = &[
    (TYPE_NET, "net", 24, 2),
    (TYPE_BLOCK, "blk", 60, 1),
    (TYPE_CONSOLE, "console", 12, 2),
    (4, "rng", 0, 1),
    (TYPE_BALLOON, "balloon", 16, 2),
    (TYPE_SCSI, "scsi", 36, 3),
    (16, "gpu", 16, 2),
    (TYPE_INPUT, "input", 136, 2),
    (19, "vsock", 8, 3),
    (TYPE_CRYPTO, "crypto", 56, 2),
    (25, "sound", 12, 4),
    (TYPE_FS, "fs", 40, 2),
    (27, "pmem", 16, 1),
    (28, "rpmb", 3, 1),
    (TYPE_SCMI, "scmi", 0, 2),
    (34, "i2c", 0, 1),
    (36, "can", 2, 3),
    (TYPE_GPIO, "gpio", 8, 2),
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

/// Options that only some types have.
#[derive(Clone, Debug, Default)]
pub struct DeviceOptions {
    /// A network card's MAC address.
    pub mac: Option<MacAddr>,
    /// A network card's MTU.
    pub mtu: Option<u16>,
    /// A file system's tag.
    pub tag: Option<String>,
    /// The disk is read-only: a backend that allows writes is refused.
    pub read_only: bool,
}

pub(super) fn config_len(device_type: u16) -> usize {
    let known = TYPES.iter().find(|(number, ..)| *number == device_type);
    known.map_or(0, |(_, _, len, _)| *len)
}

/// The number of queues that every driver uses, whatever features it accepts.
fn least_queues(device_type: u16) -> u16 {
    match device_type {
        // The second queue exists only with a feature.
        TYPE_GPIO | TYPE_SCMI => 1,
        _ => usual_queues(device_type).unwrap_or(1),
    }
}

/// The number of queues: as configured (`wanted`), if the backend has as many (`has`, if it can be asked).
pub(super) fn queue_count(device_type: u16, wanted: Option<u16>, has: Option<u64>) -> Result<u16> {
    let usual = usual_queues(device_type);
    let wanted = wanted
        .or(usual)
        .or_else(|| has.and_then(|has| u16::try_from(has).ok()))
        .unwrap_or(1);
    let limit = match has {
        // Some backends count pairs of a network card's queues, without the control queue.
        Some(pairs) if device_type == TYPE_NET => pairs.saturating_mul(2).saturating_add(1),
        Some(queues) => queues,
        None => u64::from(usual.unwrap_or(wanted)),
    };
    let least = least_queues(device_type);
    if wanted < least {
        return Err(Fault::TooFewQueues { wanted, least });
    }
    if u64::from(wanted) > limit {
        let has = has.unwrap_or(limit);
        return Err(Fault::TooManyQueues { wanted, has });
    }
    Ok(wanted)
}

/// The features offered to drivers: those of the backend, without those that need more queues or (`config`) a
/// configuration space.
pub(super) fn features(
    device_type: u16,
    backend: u64,
    queues: u16,
    config: bool,
    options: &DeviceOptions,
) -> Result<u64> {
    let mut features = backend;
    match device_type {
        TYPE_BLOCK if !config => return Err(Fault::Lacks("a configuration space (CONFIG)")),
        TYPE_BLOCK if options.read_only && backend & BLK_F_RO == 0 => {
            return Err(Fault::Options(
                "the disk is to be for reading only, and the backend lets it be written: start the backend with --read-only",
            ));
        }
        TYPE_BLOCK if queues == 1 => features &= !BLK_F_MQ,
        TYPE_NET => {
            if queues.is_multiple_of(2) {
                features &= !NET_CONTROL;
            }
            if queues < 5 {
                // There is one pair and the control queue.
                features &= !NET_F_MQ;
            }
            if !config {
                features &= !NET_FIELDS;
            }
            if options.mac.is_some() {
                features |= NET_F_MAC;
            }
            if options.mtu.is_some() {
                features |= NET_F_MTU;
            }
        }
        TYPE_FS if !config && options.tag.is_none() => {
            return Err(Fault::Lacks(
                "a configuration space (CONFIG), and no tag was given",
            ));
        }
        // Each port has a pair of queues, and the control queues are a pair.
        TYPE_CONSOLE if queues < 4 => features &= !CONSOLE_F_MULTIPORT,
        TYPE_BALLOON => {
            let mut free = queues.saturating_sub(2);
            for feature in BALLOON_QUEUES {
                match features & feature != 0 && free > 0 {
                    true => free -= 1,
                    false => features &= !feature,
                }
            }
        }
        TYPE_FS if queues < 3 => features &= !FS_F_NOTIFICATION,
        TYPE_GPIO if queues < 2 => features &= !GPIO_F_IRQ,
        TYPE_SCMI if queues < 2 => features &= !SCMI_F_P2A_CHANNELS,
        _ => {}
    }
    Ok(features)
}

/// Whether the backend gets the driver's write. Other writes only change the copy of the configuration space: backends
/// do not need them, and some end when they get one.
pub(super) fn is_written_to_backend(device_type: u16, offset: u32, len: usize) -> bool {
    match device_type {
        TYPE_BLOCK => (offset, len) == (BLK_WCE, 1),
        TYPE_INPUT => u64::from(offset) + len as u64 <= INPUT_SELECTION.into(),
        _ => false,
    }
}

/// Sets the fields of the configuration space that depend on the monitor's configuration.
pub(super) fn adjust(
    device_type: u16,
    config: &mut [u8],
    queues: u16,
    options: &DeviceOptions,
) -> Result<()> {
    // Fields that are a number of queues are limited to the number there is.
    let mut limit = |at: usize, most: u16| {
        let field = config
            .get_mut(at..)
            .and_then(|rest| rest.first_chunk_mut::<4>());
        if let Some(field) = field {
            *field = u32::from_le_bytes(*field).min(most.into()).to_le_bytes();
        }
    };
    match device_type {
        TYPE_SCSI => limit(SCSI_NUM_QUEUES, queues.saturating_sub(2)),
        TYPE_CRYPTO => limit(CRYPTO_MAX_DATA_QUEUES, queues.saturating_sub(1)),
        TYPE_CONSOLE => limit(CONSOLE_MAX_PORTS, (queues / 2).saturating_sub(1).max(1)),
        TYPE_FS => limit(FS_NUM_REQUEST_QUEUES, queues.saturating_sub(1)),
        _ => {}
    }
    let mut put = |at: usize, bytes: &[u8]| {
        for (to, byte) in config.iter_mut().skip(at).zip(bytes) {
            *to = *byte;
        }
    };
    match device_type {
        TYPE_BLOCK => put(BLK_NUM_QUEUES, &queues.to_le_bytes()),
        TYPE_NET => {
            put(NET_MAX_PAIRS, &(queues / 2).to_le_bytes());
            if let Some(mac) = &options.mac {
                put(NET_MAC, &mac.octets());
            }
            if let Some(mtu) = options.mtu {
                put(NET_MTU, &mtu.to_le_bytes());
            }
        }
        TYPE_FS => {
            if let Some(tag) = &options.tag {
                if tag.is_empty() || tag.len() > FS_TAG_LEN {
                    return Err(Fault::Options("a tag has 1 to 36 bytes"));
                }
                put(0, &[0; FS_TAG_LEN]);
                put(0, tag.as_bytes());
                let count = u32::from(queues.saturating_sub(1));
                put(FS_NUM_REQUEST_QUEUES, &count.to_le_bytes());
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
    fn a_driver_would_not_take_fewer_queues_than_its_type_has() {
        for (kind, least) in [
            (TYPE_CONSOLE, 2),
            (TYPE_NET, 2),
            (TYPE_SCSI, 3),
            (19, 3),
            (TYPE_FS, 2),
            (TYPE_GPIO, 1),
            (60, 1),
        ] {
            let error = queue_count(kind, Some(least - 1), Some(8)).unwrap_err();
            let start = format!("{} queues are too few", least - 1);
            assert!(error.to_string().starts_with(&start), "{kind}: {error}");
            assert_eq!(queue_count(kind, Some(least), Some(8)).unwrap(), least);
        }
    }

    #[test]
    fn a_network_card_has_the_address_it_was_given() {
        let options = DeviceOptions {
            mac: Some(MacAddr::new([2, 0, 0, 0, 0, 9])),
            mtu: Some(9000),
            ..DeviceOptions::default()
        };
        let mut config = [0xff; 24];
        adjust(TYPE_NET, &mut config, 2, &options).unwrap();
        assert_eq!(config[..6], [2, 0, 0, 0, 0, 9]);
        assert_eq!(config[8..12], [1, 0, 0x28, 0x23]);
        let features = features(TYPE_NET, NET_CONTROL | 1, 2, false, &options).unwrap();
        assert_eq!(features, NET_F_MAC | NET_F_MTU | 1);
    }

    #[test]
    fn a_block_device_needs_a_configuration_space() {
        let none = DeviceOptions::default();
        assert!(features(TYPE_BLOCK, 0, 1, false, &none).is_err());
        assert_eq!(features(TYPE_BLOCK, BLK_F_MQ, 1, true, &none).unwrap(), 0);
        assert_eq!(
            features(TYPE_BLOCK, BLK_F_MQ, 2, true, &none).unwrap(),
            BLK_F_MQ
        );
    }

    #[test]
    fn a_disk_for_reading_only_is_one_that_the_backend_offers_so() {
        let read_only = DeviceOptions {
            read_only: true,
            ..DeviceOptions::default()
        };
        assert!(features(TYPE_BLOCK, 0, 1, true, &read_only).is_err());
        let offered = features(TYPE_BLOCK, BLK_F_RO, 1, true, &read_only).unwrap();
        assert_eq!(offered, BLK_F_RO);
    }

    #[test]
    fn what_needs_more_queues_than_there_are_is_not_offered() {
        let offered = |kind, feature, queues| {
            let none = DeviceOptions {
                tag: Some("share".into()),
                ..DeviceOptions::default()
            };
            features(kind, feature, queues, true, &none).unwrap()
        };
        for (kind, feature, enough) in [
            (TYPE_CONSOLE, CONSOLE_F_MULTIPORT, 4),
            (TYPE_NET, bits(&[net::VIRTIO_NET_F_CTRL_VQ]), 3),
            (TYPE_NET, NET_F_MQ, 5),
            (TYPE_BLOCK, BLK_F_MQ, 2),
            (TYPE_BALLOON, BALLOON_QUEUES[0], 3),
            (TYPE_FS, FS_F_NOTIFICATION, 3),
            (TYPE_GPIO, GPIO_F_IRQ, 2),
            (TYPE_SCMI, SCMI_F_P2A_CHANNELS, 2),
        ] {
            assert_eq!(offered(kind, feature, enough - 1), 0, "{kind}");
            assert_eq!(offered(kind, feature, enough), feature, "{kind}");
        }
        let all = BALLOON_QUEUES.iter().sum();
        assert_eq!(
            offered(TYPE_BALLOON, all, 4),
            BALLOON_QUEUES[0] | BALLOON_QUEUES[1]
        );
        assert_eq!(
            offered(TYPE_BALLOON, BALLOON_QUEUES[2], 3),
            BALLOON_QUEUES[2]
        );
    }

    #[test]
    fn counts_of_queues_are_no_greater_than_what_there_is() {
        let none = DeviceOptions::default();
        for (kind, at, queues, most) in [
            (TYPE_SCSI, SCSI_NUM_QUEUES, 3, 1),
            (TYPE_CRYPTO, CRYPTO_MAX_DATA_QUEUES, 2, 1),
            (TYPE_CONSOLE, CONSOLE_MAX_PORTS, 4, 1),
            (TYPE_CONSOLE, CONSOLE_MAX_PORTS, 2, 1),
            (TYPE_FS, FS_NUM_REQUEST_QUEUES, 3, 2),
        ] {
            let mut config = vec![0; config_len(kind)];
            config[at] = 9;
            adjust(kind, &mut config, queues, &none).unwrap();
            assert_eq!(config[at..at + 4], [most, 0, 0, 0], "{kind}");
        }
    }

    #[test]
    fn few_writes_are_the_backend_s() {
        assert!(is_written_to_backend(TYPE_BLOCK, 32, 1));
        for (kind, offset, len) in [
            (TYPE_BLOCK, 32, 2),
            (TYPE_BLOCK, 0, 8),
            (TYPE_NET, 0, 6),
            (TYPE_SCSI, 20, 4),
            (TYPE_CONSOLE, 8, 4),
        ] {
            assert!(!is_written_to_backend(kind, offset, len), "{kind} {offset}");
        }
        assert!(
            is_written_to_backend(TYPE_INPUT, 1, 1) && !is_written_to_backend(TYPE_INPUT, 2, 1)
        );
    }

    #[test]
    fn a_tag_must_fit() {
        let tag = |tag: &str| DeviceOptions {
            tag: Some(tag.into()),
            ..DeviceOptions::default()
        };
        let mut config = [0xff; 40];
        adjust(TYPE_FS, &mut config, 2, &tag("share")).unwrap();
        assert_eq!(config[..8], *b"share\0\0\0");
        assert_eq!(config[36..], [1, 0, 0, 0]);
        assert!(adjust(TYPE_FS, &mut config, 2, &tag("")).is_err());
        assert!(adjust(TYPE_FS, &mut config, 2, &tag(&"x".repeat(37))).is_err());
    }
}
