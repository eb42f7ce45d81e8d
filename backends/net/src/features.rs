//! virtio-net's feature bits and configuration space (virtio 1.2, 5.1.3 and 5.1.4), and the TAP offloads behind them.

use bulkhead_mac::MacAddr;
use tap::{Offloads, Tap};
use virtio_bindings::virtio_net as net;

/// Each receive feature of the guest, and the offload that the TAP device needs for it.
const RECEIVING: &[(u32, Offloads)] = &[
    (net::VIRTIO_NET_F_GUEST_CSUM, Offloads::CSUM),
    (net::VIRTIO_NET_F_GUEST_TSO4, Offloads::TSO4),
    (net::VIRTIO_NET_F_GUEST_TSO6, Offloads::TSO6),
    (net::VIRTIO_NET_F_GUEST_ECN, Offloads::TSO_ECN),
    (net::VIRTIO_NET_F_GUEST_USO4, Offloads::USO4),
    (net::VIRTIO_NET_F_GUEST_USO6, Offloads::USO6),
];

/// Transmit features that are always offered: the kernel does the work that the guest leaves out.
const SENDING: u64 = bit(net::VIRTIO_NET_F_CSUM)
    | bit(net::VIRTIO_NET_F_HOST_TSO4)
    | bit(net::VIRTIO_NET_F_HOST_TSO6)
    | bit(net::VIRTIO_NET_F_HOST_ECN);

/// TCP segmentation, which every supported kernel has.
const TCP: Offloads = Offloads::CSUM
    .union(Offloads::TSO4)
    .union(Offloads::TSO6)
    .union(Offloads::TSO_ECN);
/// UDP segmentation, which Linux has since 6.2.
const UDP: Offloads = Offloads::USO4.union(Offloads::USO6);

/// The mask of a feature bit.
pub(crate) const fn bit(feature: u32) -> u64 {
    1 << feature
}

/// The offloads that this kernel's TAP devices have.
pub(crate) fn supported(tap: &Tap) -> Offloads {
    [TCP.union(UDP), TCP, Offloads::CSUM]
        .into_iter()
        .find(|&some| tap.supports_offloads(some))
        .unwrap_or_default()
}

/// What is offered to the driver.
pub(crate) fn offered(supported: Offloads, mac: bool, mtu: bool, pairs: usize) -> u64 {
    let mut features = bit(net::VIRTIO_NET_F_MRG_RXBUF) | bit(net::VIRTIO_NET_F_STATUS) | SENDING;
    for &(feature, offload) in RECEIVING {
        if supported.contains(offload) {
            features |= bit(feature);
        }
    }
    if supported.contains(UDP) {
        features |= bit(net::VIRTIO_NET_F_HOST_USO);
    }
    if mac {
        features |= bit(net::VIRTIO_NET_F_MAC);
    }
    if mtu {
        features |= bit(net::VIRTIO_NET_F_MTU);
    }
    if pairs > 1 {
        features |= bit(net::VIRTIO_NET_F_MQ) | bit(net::VIRTIO_NET_F_CTRL_VQ);
    }
    features
}

/// What the TAP device is to leave undone for a driver with these features.
pub(crate) fn offloads(features: u64) -> Offloads {
    let accepted = RECEIVING
        .iter()
        .filter(|(feature, _)| features & bit(*feature) != 0);
    let offloads = accepted.fold(Offloads::empty(), |all, &(_, offload)| all | offload);
    // Each of them needs the checksum; a driver that says otherwise gets none.
    if offloads.contains(Offloads::CSUM) {
        offloads
    } else {
        Offloads::empty()
    }
}

/// The configuration space as the driver reads it: `struct virtio_net_config` up to `mtu`.
pub(crate) fn config(mac: Option<MacAddr>, pairs: u16, mtu: Option<u16>) -> Vec<u8> {
    let mut config = mac.map(MacAddr::octets).unwrap_or_default().to_vec();
    let link_up = net::VIRTIO_NET_S_LINK_UP as u16;
    for field in [link_up, pairs, mtu.unwrap_or(0)] {
        config.extend(field.to_le_bytes());
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_guest_accepts_is_what_the_tap_leaves_undone() {
        let features = bit(net::VIRTIO_NET_F_GUEST_CSUM) | bit(net::VIRTIO_NET_F_GUEST_TSO6);
        assert_eq!(offloads(features), Offloads::CSUM | Offloads::TSO6);
        assert_eq!(
            offloads(bit(net::VIRTIO_NET_F_GUEST_TSO4)),
            Offloads::empty(),
            "without checksum"
        );
        assert_eq!(offloads(0), Offloads::empty());
    }

    #[test]
    fn only_what_can_be_done_is_offered() {
        let plain = offered(Offloads::CSUM, false, false, 1);
        for absent in [
            net::VIRTIO_NET_F_GUEST_TSO4,
            net::VIRTIO_NET_F_HOST_USO,
            net::VIRTIO_NET_F_MAC,
            net::VIRTIO_NET_F_MTU,
            net::VIRTIO_NET_F_MQ,
            net::VIRTIO_NET_F_CTRL_VQ,
        ] {
            assert_eq!(plain & bit(absent), 0, "{absent}");
        }
        let all = offered(TCP | UDP, true, true, 2);
        for present in [
            net::VIRTIO_NET_F_GUEST_TSO4,
            net::VIRTIO_NET_F_HOST_USO,
            net::VIRTIO_NET_F_MQ,
        ] {
            assert_ne!(all & bit(present), 0, "{present}");
        }
    }

    #[test]
    fn the_configuration_space_is_the_specifications() {
        let mac = "52:54:00:01:02:03".parse().ok();
        assert_eq!(
            config(mac, 2, Some(9000)),
            [0x52, 0x54, 0, 1, 2, 3, 1, 0, 2, 0, 0x28, 0x23]
        );
    }
}
