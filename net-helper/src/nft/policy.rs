//! What the networks' modes mean for packets.
//!
//! A packet that is routed is asked for twice: may it leave the network it comes from, and may it enter the one it goes to? An accept of
//! this table ends neither question for other tables: a firewall that drops still does. What may pass is marked before it is routed, and
//! without the mark there is no route (see [`crate::routing`]): a packet passes when the rules of both places say so.

use super::expression::Rule;
use super::table::{Chain, Hook};
use crate::identity::TAP_PREFIX;
use crate::network::{Addressing, Mode, Network};
use crate::routing::{MAY_ENTER, MAY_LEAVE};

/// The port that DHCP servers listen on.
const DHCP: u16 = 67;

/// The chains that make these networks what they say. `only_guests`: this host routes for them and for nobody else.
pub(crate) fn chains(networks: &[Network], only_guests: bool) -> Vec<Chain> {
    // A TAP device whose bridge somebody has removed is an interface of this host, by which its guest must not come in.
    let mut to_host = vec![Rule::new().iifname_prefix(TAP_PREFIX).drop()];
    // Before the rules of any network: a guest of one does not come to the address of another either.
    to_host.extend(networks.iter().flat_map(host_is_reached_from_within));
    let mut marks = Vec::new();
    let mut leaving = Vec::new();
    let mut entering = Vec::new();
    let mut translated = Vec::new();
    for network in networks {
        let Some(addressing) = network.addressing else {
            continue;
        };
        to_host.extend(may_reach_host(network, addressing));
        marks.extend(routable(network, addressing));
        leaving.extend(may_leave(network, addressing));
        entering.extend(may_enter(network, addressing));
        if network.mode == Mode::Nat {
            translated.push(translation(network, addressing));
        }
    }
    leaving.push(Rule::new().iifname_prefix(TAP_PREFIX).drop());
    entering.push(Rule::new().oifname_prefix(TAP_PREFIX).drop());
    if only_guests {
        leaving.extend(no_others(networks));
    }
    let chain = |name, hook, rules| Chain { name, hook, rules };
    vec![
        chain("to_host", Hook::Input, to_host),
        chain("routable", Hook::PreRouting, marks),
        chain("from_guests", Hook::Forward { priority: 0 }, leaving),
        chain("to_guests", Hook::Forward { priority: 1 }, entering),
        chain("translation", Hook::SourceNat, translated),
    ]
}

/// The host's own address on a network is for that network's guests and for the host itself: others that have a route to it would reach
/// the network's dnsmasq, and whatever else listens there. They may answer what the host has asked from that address, where it may ask.
fn host_is_reached_from_within(network: &Network) -> Vec<Rule> {
    let Some(addressing) = network.addressing else {
        return Vec::new();
    };
    // All of the subnet: its broadcast address is the host's, too.
    let from_elsewhere = || {
        Rule::new()
            .not_iifname(&network.bridge)
            .not_from_itself()
            .destination(addressing.subnet)
    };
    let answers = match network.mode {
        Mode::Nat | Mode::Routed => Some(from_elsewhere().of_answer().accept()),
        Mode::Isolated | Mode::Bridge => None,
    };
    answers
        .into_iter()
        .chain([from_elsewhere().drop()])
        .collect()
}

/// What guests may say to this host: isolated ones to its address on their network only.
fn may_reach_host(network: &Network, addressing: Addressing) -> Vec<Rule> {
    let from = || Rule::new().iifname(&network.bridge);
    let from_guest = || from().source(addressing.subnet);
    let mut rules = Vec::new();
    if addressing.dhcp {
        rules.push(from().udp_destination(DHCP).accept());
    }
    rules.push(match network.mode {
        Mode::Nat | Mode::Routed => from_guest().accept(),
        Mode::Isolated | Mode::Bridge => from_guest()
            .destination_address(addressing.subnet.gateway())
            .accept(),
    });
    rules.push(from_guest().of_known_connection().accept());
    rules.push(from().drop());
    rules
}

/// Gives what may be routed its mark.
fn routable(network: &Network, addressing: Addressing) -> Vec<Rule> {
    let subnet = addressing.subnet;
    let leaves = || Rule::new().iifname(&network.bridge).source(subnet);
    let enters = || Rule::new().destination(subnet);
    match network.mode {
        Mode::Nat => vec![
            leaves().of_valid_connection().mark(MAY_LEAVE),
            enters().of_known_connection().mark(MAY_ENTER),
        ],
        Mode::Routed => vec![leaves().mark(MAY_LEAVE), enters().mark(MAY_ENTER)],
        Mode::Isolated | Mode::Bridge => Vec::new(),
    }
}

fn may_leave(network: &Network, addressing: Addressing) -> Vec<Rule> {
    let from = || Rule::new().iifname(&network.bridge);
    let mut rules = vec![from().oifname(&network.bridge).accept()];
    match network.mode {
        // What belongs to no connection would leave with the guest's own address.
        Mode::Nat => rules.push(
            from()
                .source(addressing.subnet)
                .of_valid_connection()
                .accept(),
        ),
        Mode::Routed => rules.push(from().source(addressing.subnet).accept()),
        Mode::Isolated | Mode::Bridge => {}
    }
    rules.push(from().drop());
    rules
}

/// Drops what neither comes from a network of this program's nor goes to one. Between interfaces that are no bridges, since a host may
/// ask this chain about frames within a bridge, too; and from bridges that guests have joined.
fn no_others(networks: &[Network]) -> Vec<Rule> {
    let (own, joined): (Vec<_>, Vec<_>) = networks.iter().partition(|n| n.owns_bridge());
    let to_own = own.iter().map(|n| Rule::new().oifname(&n.bridge).accept());
    let from_joined = joined.iter().map(|n| {
        let from = Rule::new().iifname(&n.bridge).not_oifname(&n.bridge);
        from.ipv4().drop()
    });
    let from_elsewhere = Rule::new().not_iifkind_bridge().ipv4().drop();
    to_own.chain(from_joined).chain([from_elsewhere]).collect()
}

fn may_enter(network: &Network, addressing: Addressing) -> Vec<Rule> {
    let subnet = addressing.subnet;
    let to = || Rule::new().oifname(&network.bridge);
    let mut rules = vec![to().iifname(&network.bridge).accept()];
    match network.mode {
        Mode::Nat => rules.push(to().destination(subnet).of_known_connection().accept()),
        Mode::Routed => rules.push(to().destination(subnet).accept()),
        Mode::Isolated | Mode::Bridge => {}
    }
    rules.push(to().drop());
    rules
}

fn translation(network: &Network, addressing: Addressing) -> Rule {
    Rule::new()
        .source(addressing.subnet)
        .not_destination(addressing.subnet)
        .not_oifname(&network.bridge)
        .masquerade()
}
