//! Guests reach other networks through this host, with its address. Others can answer them, and cannot begin a
//! connection.

use tap::InterfaceName;

use super::{ForwardMode, MAY_ENTER, MAY_LEAVE};
use crate::nft::Rule;
use crate::subnet::Ipv4Subnet;

#[derive(Debug)]
pub(super) struct Nat;

impl ForwardMode for Nat {
    fn name(&self) -> &'static str {
        "nat"
    }

    fn is_routed(&self) -> bool {
        true
    }

    fn mark(&self, bridge: &InterfaceName, subnet: Ipv4Subnet) -> Vec<Rule> {
        let leaves = Rule::new().iifname(bridge).ip_saddr_in(subnet);
        let enters = Rule::new().ip_daddr_in(subnet);
        vec![
            leaves.ct_state_valid().set_mark_bits(MAY_LEAVE),
            enters.ct_state_established().set_mark_bits(MAY_ENTER),
        ]
    }

    /// A packet without a valid connection is not translated: it would leave with the guest's own address.
    fn leave(&self, bridge: &InterfaceName, subnet: Ipv4Subnet) -> Vec<Rule> {
        let from_guest = Rule::new().iifname(bridge).ip_saddr_in(subnet);
        vec![from_guest.ct_state_valid().accept()]
    }

    fn enter(&self, bridge: &InterfaceName, subnet: Ipv4Subnet) -> Vec<Rule> {
        let to_guest = Rule::new().oifname(bridge).ip_daddr_in(subnet);
        vec![to_guest.ct_state_established().accept()]
    }

    /// A packet with a guest's address that has not come from the network's bridge has no mark.
    fn source_nat(&self, bridge: &InterfaceName, subnet: Ipv4Subnet) -> Vec<Rule> {
        let from_guest = Rule::new().ip_saddr_in(subnet).mark_bits(MAY_LEAVE);
        let from_host = Rule::new().ip_saddr(subnet.gateway());
        let translate = |rule: Rule| {
            let leaves = rule.not_ip_daddr_in(subnet).not_oifname(bridge);
            leaves.masquerade()
        };
        vec![translate(from_guest), translate(from_host)]
    }

    /// A connection that was tracked before the guest's packets came by the network, for example while its TAP device
    /// was on another bridge, is not translated.
    fn after_source_nat(&self, bridge: &InterfaceName, subnet: Ipv4Subnet) -> Vec<Rule> {
        let from_guest = Rule::new().ip_saddr_in(subnet).mark_bits(MAY_LEAVE);
        let leaves = from_guest.not_ip_daddr_in(subnet).not_oifname(bridge);
        vec![leaves.drop()]
    }
}
