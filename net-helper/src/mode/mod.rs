//! Network modes: how the guests of a network reach other networks, as libvirt's forward modes.
//!
//! To add a mode, for example `open` (routed, without rules) or `private` (guests do not reach each other): write a
//! file in this folder that implements [`ForwardMode`], and add it to [`MODES`]. Nothing else names a mode: the command
//! line, its help, the record in the state folder, [`crate::firewall`], [`crate::routing`] and [`crate::dhcp`] ask the
//! trait.

mod bridge;
mod isolated;
mod nat;
mod routed;

use std::fmt;
use std::ops::Deref;
use std::str::FromStr;

use tap::InterfaceName;

use crate::nft::Rule;
use crate::subnet::Ipv4Subnet;

/// All modes, the default first.
const MODES: &[&dyn ForwardMode] = &[
    &nat::Nat,
    &routed::Routed,
    &isolated::Isolated,
    &bridge::Bridge,
];

/// The bit of a packet's mark that means: it may leave the network that it comes from.
pub(crate) const MAY_LEAVE: u32 = 1 << 24;
/// The bit of a packet's mark that means: it may enter the network that it goes to.
pub(crate) const MAY_ENTER: u32 = 1 << 25;

/// What one mode allows. The rules that a mode adds are for one network, with its bridge and its subnet.
/// [`crate::firewall`] lets through what is bridged within a network, drops what no rule here accepts, and protects the
/// host; [`crate::routing`] discards what no rule here marks.
pub(crate) trait ForwardMode: fmt::Debug + Sync {
    /// The value of `mode=` on the command line. The state folder contains it, so it stays as it is.
    fn name(&self) -> &'static str;

    /// Another value that means the same.
    fn alias(&self) -> Option<&'static str> {
        None
    }

    /// Whether this program creates the bridge and removes it, and the host has an address on it. Otherwise the bridge
    /// is somebody else's, the network has no subnet and no DHCP, and none of the rules below are asked for.
    fn owns_bridge(&self) -> bool {
        true
    }

    /// Whether the host routes packets between the guests and other networks. Then it forwards IPv4, guests can reach
    /// all of its addresses and resolve names, and DHCP gives them a default route.
    fn is_routed(&self) -> bool {
        false
    }

    /// Rules before routing, which set [`MAY_LEAVE`] or [`MAY_ENTER`] in the marks of packets that may be routed.
    fn mark(&self, _bridge: &InterfaceName, _subnet: Ipv4Subnet) -> Vec<Rule> {
        Vec::new()
    }

    /// Rules that accept routed packets that come from the network.
    fn leave(&self, _bridge: &InterfaceName, _subnet: Ipv4Subnet) -> Vec<Rule> {
        Vec::new()
    }

    /// Rules that accept routed packets that go to the network.
    fn enter(&self, _bridge: &InterfaceName, _subnet: Ipv4Subnet) -> Vec<Rule> {
        Vec::new()
    }

    /// Rules that translate the source addresses of packets that leave this host.
    fn source_nat(&self, _bridge: &InterfaceName, _subnet: Ipv4Subnet) -> Vec<Rule> {
        Vec::new()
    }

    /// Rules that drop packets whose source addresses should have been translated.
    fn after_source_nat(&self, _bridge: &InterfaceName, _subnet: Ipv4Subnet) -> Vec<Rule> {
        Vec::new()
    }
}

/// One of [`MODES`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mode(&'static dyn ForwardMode);

impl Mode {
    /// The names of all modes.
    pub(crate) fn names(separator: &str) -> String {
        let names: Vec<_> = MODES.iter().map(|mode| mode.name()).collect();
        names.join(separator)
    }
}

impl Default for Mode {
    fn default() -> Self {
        Mode(MODES[0])
    }
}

impl Deref for Mode {
    type Target = dyn ForwardMode;

    fn deref(&self) -> &Self::Target {
        self.0
    }
}

impl PartialEq for Mode {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for Mode {}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_it = |mode: &&&dyn ForwardMode| mode.name() == text || mode.alias() == Some(text);
        let mode = MODES.iter().find(is_it).map(|&mode| Mode(mode));
        mode.ok_or_else(|| format!("mode={text} is not one of {}", Mode::names(", ")))
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_earlier_versions_and_each_is_read_as_it_is_written() {
        assert_eq!(Mode::names("|"), "nat|routed|isolated|bridge");
        assert_eq!(Mode::default().to_string(), "nat");
        for mode in MODES {
            let parsed: Mode = mode.name().parse().unwrap();
            assert_eq!(parsed.to_string(), mode.name());
        }
        assert_eq!("route".parse::<Mode>().unwrap().name(), "routed");
        let error = "magic".parse::<Mode>().unwrap_err();
        assert_eq!(
            error,
            "mode=magic is not one of nat, routed, isolated, bridge"
        );
    }
}
