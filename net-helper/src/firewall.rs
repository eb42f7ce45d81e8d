//! The chains of the nftables table: what the networks' modes mean for packets.
//!
//! An interface is a network's bridge if it has the bridge's name and the group of this program's interfaces. What
//! comes in by an interface that has only one of them, or only the bridge's index, is dropped: somebody has renamed
//! the bridge, or given its name to another interface, or removed the bridge of a TAP device.
//!
//! Others can put an interface on a bridge or a TAP device (a VLAN, a macvlan), by which guests would reach the host
//! beside their network. What comes in by it, or is routed to it, is dropped.
//!
//! A packet with a guest's source address must come from that guest's bridge; what comes from elsewhere with such an
//! address is dropped first, or else the answer would reach the guest.
//!
//! A routed packet passes two chains: may it leave the network that it comes from, and may it enter the network that it
//! goes to? Other tables are evaluated as well, so a packet that this table accepts can still be dropped by the host's
//! own firewall. Before routing, packets that may pass get a mark, and without the mark there is no route (see
//! [`crate::routing`]): a packet passes only if both kinds of rules allow it.

use tap::InterfaceName;

use crate::identity::TAP_PREFIX;
use crate::network::{Addressing, Network};
use crate::nft::{Chain, Hook, Rule};
use crate::subnet::Ipv4Subnet;

/// The port of DHCP servers.
const DHCP: u16 = 67;

/// The interfaces of the networks.
pub(crate) struct Interfaces<'a> {
    pub(crate) networks: &'a [Network],
    /// The index of each network's bridge, if it exists.
    pub(crate) bridges: &'a [Option<u32>],
    /// The group of this program's interfaces.
    pub(crate) group: u32,
    /// The indices of others' interfaces on top of this program's.
    pub(crate) above: &'a [u32],
}

impl Interfaces<'_> {
    /// The networks whose bridges are this program's, or else the others, with the indices of their bridges.
    fn with_bridges(&self, own: bool) -> impl Iterator<Item = (&Network, Option<u32>)> {
        let all = self.networks.iter().zip(self.bridges.iter().copied());
        all.filter(move |(network, _)| network.owns_bridge() == own)
    }
}

/// The chains for these networks. `only_guests` means that this host routes for guests alone, since this program has
/// switched routing on.
pub(crate) fn chains(interfaces: &Interfaces<'_>, only_guests: bool) -> Vec<Chain> {
    let Interfaces {
        networks, group, ..
    } = *interfaces;
    let mut to_host = from_above(interfaces);
    // When somebody has removed a TAP device's bridge, its guest's packets come in by the TAP device itself.
    to_host.push(Rule::new().iifname_prefix(TAP_PREFIX).drop());
    to_host.extend(spoofed(networks).map(Rule::drop));
    // These come before the other rules of any network, so that a guest of one network does not reach the host's
    // address on another.
    to_host.extend(networks.iter().flat_map(host_address_is_for_own_guests));
    let mut mark = Vec::new();
    let mut leave = from_above(interfaces);
    leave.extend(spoofed_and_routed(networks, group));
    let above = interfaces.above.iter();
    let mut enter: Vec<_> = above.map(|&index| Rule::new().oif(index).drop()).collect();
    for network in networks.iter().filter(|network| network.owns_bridge()) {
        let to_its_name = Rule::new().oifname(&network.bridge);
        enter.push(to_its_name.not_oifgroup(group).drop());
    }
    let mut source_nat = Vec::new();
    let mut after_source_nat = Vec::new();
    for network in networks {
        let Some(addressing) = network.addressing else {
            continue;
        };
        let (mode, bridge, subnet) = (network.mode, &network.bridge, addressing.subnet);
        to_host.extend(from_guests_to_host(network, addressing));
        mark.extend(mode.mark(bridge, subnet));
        let within = |rule: Rule| rule.iifname(bridge).oifname(bridge).accept();
        leave.push(within(Rule::new()));
        leave.extend(mode.leave(bridge, subnet));
        leave.push(Rule::new().iifname(bridge).drop());
        enter.push(within(Rule::new()));
        enter.extend(mode.enter(bridge, subnet));
        enter.push(Rule::new().oifname(bridge).drop());
        source_nat.extend(mode.source_nat(bridge, subnet));
        after_source_nat.extend(mode.after_source_nat(bridge, subnet));
    }
    leave.push(Rule::new().iifname_prefix(TAP_PREFIX).drop());
    enter.push(Rule::new().oifname_prefix(TAP_PREFIX).drop());
    enter.push(Rule::new().oifgroup(group).drop());
    let own = interfaces.with_bridges(true);
    enter.extend(own.filter_map(|(_, index)| Some(Rule::new().oif(index?).drop())));
    if only_guests {
        leave.extend(no_routing_for_others(interfaces));
    }
    let chain = |name, hook, rules| Chain { name, hook, rules };
    vec![
        chain("inward", Hook::Raw, inward(interfaces)),
        chain("to_host", Hook::Input, to_host),
        chain("routable", Hook::PreRouting, mark),
        chain("from_guests", Hook::Forward { priority: 0 }, leave),
        chain("to_guests", Hook::Forward { priority: 1 }, enter),
        chain("translation", Hook::SourceNat, source_nat),
        chain("translated", Hook::AfterSourceNat, after_source_nat),
    ]
}

/// Drops what comes in by an interface on top of this program's. If br_netfilter is loaded, such a packet passes the
/// chains before routing as one that comes in by the bridge, so other chains have these rules, too.
fn from_above(interfaces: &Interfaces<'_>) -> Vec<Rule> {
    let above = interfaces.above.iter();
    above.map(|&index| Rule::new().iif(index).drop()).collect()
}

/// Packets with a source address of a network's subnet that come neither from the network's bridge nor from this host.
fn spoofed(networks: &[Network]) -> impl Iterator<Item = Rule> {
    networks.iter().filter_map(|network| {
        let Addressing { subnet, .. } = network.addressing?;
        let from_elsewhere = Rule::new().not_iifname(&network.bridge).not_iifname_lo();
        Some(from_elsewhere.ip_saddr_in(subnet))
    })
}

/// Drops what comes in by an interface on top of a network's or by one that is half a network's bridge, and spoofed
/// packets, before anything can answer them: an IP option that is wrong, or a TTL that ends here, is answered before
/// the other chains see the packet. If br_netfilter is loaded, frames within others' bridges pass this chain, too,
/// and may have any address: what comes from those bridges is left to the other chains and the routing rules.
fn inward(interfaces: &Interfaces<'_>) -> Vec<Rule> {
    let Interfaces {
        networks, group, ..
    } = *interfaces;
    let mut rules = from_above(interfaces);
    for rule in spoofed(networks) {
        rules.push(rule.clone().not_iifkind_bridge().drop());
        rules.push(rule.iifgroup(group).drop());
    }
    for (network, index) in interfaces.with_bridges(true) {
        let by_its_name = Rule::new().iifname(&network.bridge);
        rules.push(by_its_name.clone().iifgroup(group).accept());
        rules.push(by_its_name.drop());
        rules.extend(index.map(|index| Rule::new().iif(index).drop()));
    }
    rules.push(Rule::new().iifgroup(group).drop());
    rules
}

/// Drops spoofed packets that are routed. A packet from one bridge of others to another is left to the routing rules,
/// since it may be a frame within one bridge (see [`inward`]).
fn spoofed_and_routed(networks: &[Network], group: u32) -> Vec<Rule> {
    let mut rules = Vec::new();
    for rule in spoofed(networks) {
        rules.push(rule.clone().not_oifkind_bridge().drop());
        rules.push(rule.oifgroup(group).drop());
    }
    rules
}

/// The host's address on a network is for that network's guests and for the host itself. Others with a route to it
/// would reach the network's dnsmasq, and whatever else listens there. They may answer connections that the host has
/// begun from that address, if the network is routed.
fn host_address_is_for_own_guests(network: &Network) -> Vec<Rule> {
    let Some(Addressing { subnet, .. }) = network.addressing else {
        return Vec::new();
    };
    let mut rules = Vec::new();
    if network.mode.is_routed() {
        rules.push(from_elsewhere(&network.bridge, subnet).ct_reply().accept());
    }
    rules.push(from_elsewhere(&network.bridge, subnet).drop());
    rules
}

/// A packet for any address of the subnet, since its broadcast address is also the host's.
fn from_elsewhere(bridge: &InterfaceName, subnet: Ipv4Subnet) -> Rule {
    Rule::new()
        .not_iifname(bridge)
        .not_iifname_lo()
        .ip_daddr_in(subnet)
}

/// Guests may use DHCP. Those of a routed network reach all of the host's addresses, others only its address on their
/// network.
fn from_guests_to_host(network: &Network, addressing: Addressing) -> Vec<Rule> {
    let from_bridge = || Rule::new().iifname(&network.bridge);
    let from_guest = || from_bridge().ip_saddr_in(addressing.subnet);
    let mut rules = Vec::new();
    if addressing.dhcp {
        rules.push(from_bridge().udp_dport(DHCP).accept());
    }
    rules.push(match network.mode.is_routed() {
        true => from_guest().accept(),
        false => from_guest().ip_daddr(addressing.subnet.gateway()).accept(),
    });
    rules.push(from_guest().ct_state_established().accept());
    rules.push(from_bridge().drop());
    rules
}

/// Drops routed packets that neither come from one of our networks nor go to one, and those of a bridge that guests are
/// on and that is somebody else's: this host does not route for it, but lets through what answers one of our networks.
/// If br_netfilter is loaded, frames within a bridge pass this chain, too, so packets from bridges are dropped only if
/// guests are on the bridge and the packet leaves it.
fn no_routing_for_others(interfaces: &Interfaces<'_>) -> Vec<Rule> {
    let own = || interfaces.with_bridges(true);
    let to_own = || own().map(|(network, _)| Rule::new().oifname(&network.bridge));
    let mut rules = Vec::new();
    for (network, index) in interfaces.with_bridges(false) {
        let bridge = &network.bridge;
        rules.extend(to_own().map(|rule| rule.iifname(bridge).ct_reply().accept()));
        let from = Rule::new().iifname(bridge).not_oifname(bridge);
        rules.push(from.nfproto_ipv4().drop());
        // Its owner may give it another name.
        if let Some(index) = index {
            rules.extend(to_own().map(|rule| rule.iif(index).ct_reply().accept()));
            let from = Rule::new().iif(index).not_oif(index);
            rules.push(from.nfproto_ipv4().drop());
        }
    }
    rules.extend(to_own().map(Rule::accept));
    rules.push(Rule::new().not_iifkind_bridge().nfproto_ipv4().drop());
    rules
}
