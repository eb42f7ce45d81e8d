//! Guests reach other networks through this host, with their own addresses. Others can begin connections to them, and
//! need a route to them.

use tap::InterfaceName;

use super::{ForwardMode, MAY_ENTER, MAY_LEAVE};
use crate::nft::Rule;
use crate::subnet::Ipv4Subnet;

#[derive(Debug)]
pub(super) struct Routed;

impl ForwardMode for Routed {
    fn name(&self) -> &'static str {
        "routed"
    }

    /// libvirt's name.
    fn alias(&self) -> Option<&'static str> {
        Some("route")
    }

    fn is_routed(&self) -> bool {
        true
    }

    fn mark(&self, bridge: &InterfaceName, subnet: Ipv4Subnet) -> Vec<Rule> {
        let leaves = Rule::new().iifname(bridge).ip_saddr_in(subnet);
        let enters = Rule::new().ip_daddr_in(subnet);
        vec![
            leaves.set_mark_bits(MAY_LEAVE),
            enters.set_mark_bits(MAY_ENTER),
        ]
    }

    fn leave(&self, bridge: &InterfaceName, subnet: Ipv4Subnet) -> Vec<Rule> {
        vec![Rule::new().iifname(bridge).ip_saddr_in(subnet).accept()]
    }

    fn enter(&self, bridge: &InterfaceName, subnet: Ipv4Subnet) -> Vec<Rule> {
        vec![Rule::new().oifname(bridge).ip_daddr_in(subnet).accept()]
    }
}
