//! The names of a guest's units.

/// The target of a guest.
pub(crate) fn target(guest: &str) -> String {
    format!("bulkhead-guest@{}.target", escape(guest))
}

/// The unit of a guest's monitor.
pub(super) fn monitor(guest: &str) -> String {
    format!("bulkhead-vmm@{}.service", escape(guest))
}

/// The unit of a backend without its suffix. `program` is its last word: `block`, `net`.
pub(super) fn backend(program: &str, guest: &str, device: &str) -> String {
    // systemd makes a "-" of a "/" and the other way round, so the unit's %I is GUEST/DEVICE.
    format!("bulkhead-{program}@{}-{}", escape(guest), escape(device))
}

/// As systemd-escape(1) does: of the characters that names of guests and devices have, only "-" means something in a
/// unit's name.
fn escape(name: &str) -> String {
    name.replace('-', "\\x2d")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dash_is_escaped_and_separates_the_device() {
        assert_eq!(target("web"), "bulkhead-guest@web.target");
        assert_eq!(target("a-b.c_1"), "bulkhead-guest@a\\x2db.c_1.target");
        assert_eq!(monitor("a-b"), "bulkhead-vmm@a\\x2db.service");
        assert_eq!(backend("block", "a-b", "vda"), "bulkhead-block@a\\x2db-vda");
    }
}
