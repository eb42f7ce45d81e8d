//! The MAC address of a TAP device.

use bulkhead_mac::MacAddr;

/// The MAC address that the TAP device itself has for a guest with this one. With the guest's address, the bridge would
/// deliver the guest's frames to the host.
pub const fn tap_mac(guest: MacAddr) -> MacAddr {
    let [first, a, b, c, d, e] = guest.octets();
    let first = if first == 0xfe { 0xfa } else { 0xfe };
    MacAddr::new([first, a, b, c, d, e])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_end_never_has_the_guests_address() {
        for first in [0x52, 0xfe, 0xfa] {
            let guest = MacAddr::new([first, 1, 2, 3, 4, 5]);
            assert_ne!(tap_mac(guest), guest);
            assert!(tap_mac(guest).is_unicast());
        }
    }
}
