//! Routing rules (`ip rule`): a packet from or to the guests is routed only if the nftables table has marked it.
//!
//! So when somebody removes the table, the networks are closed at once, whether this program runs or not. When somebody
//! removes these rules, those of the table remain. The kernel keeps the routing rules when this program is killed.
//!
//! | preference | rule | why |
//! |---|---|---|
//! | 1 | from this host itself: go to 5 | the host reaches its guests, and its other packets are routed as usual |
//! | 2 | to a network's subnet without [`MAY_ENTER`]: discard | |
//! | 3 | in by a network's bridge without [`MAY_LEAVE`]: discard; all IPv6 | |
//! | 3 | from a network's subnet without [`MAY_LEAVE`]: discard | it has come from elsewhere, or must not leave |
//! | 4 | without either mark: discard | only if this program has switched forwarding on, which is for guests alone |
//! | 5 | nothing | the target of rule 1 |

use std::io;
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::route::RouteProtocol;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::io::Errno;

use crate::link::Links;
use crate::mode::{MAY_ENTER, MAY_LEAVE};
use crate::network::Network;

/// The `FRA_PROTOCOL` of these rules, which distinguishes them from rules of others.
const OWNER: RouteProtocol = RouteProtocol::Other(66);

/// Preferences.
const HOST: u32 = 1;
const TO_GUESTS: u32 = 2;
const FROM_GUESTS: u32 = 3;
const OTHERS: u32 = 4;
const END: u32 = 5;

/// The parts of a rule that identify it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Key {
    family: AddressFamily,
    preference: u32,
    interface: Option<String>,
    source: Option<(IpAddr, u8)>,
    destination: Option<(IpAddr, u8)>,
}

/// The rules for these networks. `only_guests` adds the rule of preference 4.
pub(crate) fn wanted(networks: &[Network], only_guests: bool, ipv6: bool) -> Vec<RuleMessage> {
    let own: Vec<_> = networks
        .iter()
        .filter_map(|n| n.addressing.map(|a| (n.bridge.to_string(), a.subnet)))
        .collect();
    if own.is_empty() {
        return Vec::new();
    }
    let host = vec![
        RuleAttribute::Iifname("lo".into()),
        RuleAttribute::Goto(END),
    ];
    let mut rules = vec![
        rule(END, RuleAction::Nop, vec![]),
        rule(HOST, RuleAction::Goto, host),
    ];
    for (bridge, subnet) in &own {
        let mut enters = unmarked(TO_GUESTS, MAY_ENTER);
        enters.header.dst_len = subnet.prefix();
        let network = IpAddr::V4(subnet.network());
        enters.attributes.push(RuleAttribute::Destination(network));
        let mut is_from = unmarked(FROM_GUESTS, MAY_LEAVE);
        is_from.header.src_len = subnet.prefix();
        is_from.attributes.push(RuleAttribute::Source(network));
        let mut leaves = unmarked(FROM_GUESTS, MAY_LEAVE);
        let bridge = RuleAttribute::Iifname(bridge.clone());
        leaves.attributes.push(bridge.clone());
        rules.extend([enters, is_from, leaves]);
        if ipv6 {
            let mut all = rule(FROM_GUESTS, RuleAction::Blackhole, vec![bridge]);
            all.header.family = AddressFamily::Inet6;
            rules.push(all);
        }
    }
    if only_guests {
        rules.push(unmarked(OTHERS, MAY_ENTER | MAY_LEAVE));
    }
    rules
}

fn rule(preference: u32, action: RuleAction, attributes: Vec<RuleAttribute>) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.action = action;
    message.attributes = attributes;
    message.attributes.extend([
        RuleAttribute::Priority(preference),
        RuleAttribute::Protocol(OWNER),
    ]);
    message
}

/// Discards packets whose mark has none of these bits.
fn unmarked(preference: u32, bits: u32) -> RuleMessage {
    let mark = vec![RuleAttribute::FwMark(0), RuleAttribute::FwMask(bits)];
    rule(preference, RuleAction::Blackhole, mark)
}

/// Adds the rules that do not exist yet.
pub(crate) fn add(links: &mut Links, wanted: &[RuleMessage]) -> io::Result<()> {
    for message in wanted {
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        match links.request(RouteNetlinkMessage::NewRule(message.clone()), flags) {
            Err(e) if Errno::from_io_error(&e) == Some(Errno::EXIST) => {}
            other => other?,
        }
    }
    Ok(())
}

/// Removes this program's rules, except the wanted ones.
pub(crate) fn remove_all_but(links: &mut Links, wanted: &[RuleMessage]) -> io::Result<()> {
    let wanted: Vec<_> = wanted.iter().map(Key::of).collect();
    let mut families = vec![AddressFamily::Inet];
    families.extend(links.has_ipv6().then_some(AddressFamily::Inet6));
    for family in families {
        let mut all = RuleMessage::default();
        all.header.family = family;
        for found in links.dump(RouteNetlinkMessage::GetRule(all))? {
            if let RouteNetlinkMessage::NewRule(message) = found
                && message.attributes.contains(&RuleAttribute::Protocol(OWNER))
                && !wanted.contains(&Key::of(&message))
            {
                match links.request(RouteNetlinkMessage::DelRule(message), 0) {
                    Err(e) if Errno::from_io_error(&e) == Some(Errno::NOENT) => {}
                    other => other?,
                }
            }
        }
    }
    Ok(())
}

impl Key {
    fn of(message: &RuleMessage) -> Self {
        let mut key = Key {
            family: message.header.family,
            preference: 0,
            interface: None,
            source: None,
            destination: None,
        };
        for attribute in &message.attributes {
            match attribute {
                RuleAttribute::Priority(preference) => key.preference = *preference,
                RuleAttribute::Iifname(name) => key.interface = Some(name.clone()),
                RuleAttribute::Source(address) => {
                    key.source = Some((*address, message.header.src_len));
                }
                RuleAttribute::Destination(address) => {
                    key.destination = Some((*address, message.header.dst_len));
                }
                _ => {}
            }
        }
        key
    }
}
