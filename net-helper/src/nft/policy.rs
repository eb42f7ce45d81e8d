//! What the networks' modes mean for packets.
//!
//! A packet that is routed is asked for twice: may it leave the network it comes from, and may it enter the one it goes to? An accept of
//! this table ends neither question for other tables: a firewall that drops still does.

use super::expression::Rule;
use super::table::{Chain, Hook};
use crate::network::{Mode, Network};
use crate::subnet::Ipv4Subnet;

/// The chains that make these networks what they say.
pub(crate) fn chains(networks: &[Network]) -> Vec<Chain> {
    let mut leaving = Vec::new();
    let mut entering = Vec::new();
    let mut translated = Vec::new();
    for network in networks {
        let Some(addressing) = network.addressing else {
            continue;
        };
        leaving.extend(may_leave(network, addressing.subnet));
        entering.extend(may_enter(network, addressing.subnet));
        if network.mode == Mode::Nat {
            translated.push(translation(network, addressing.subnet));
        }
    }
    vec![
        Chain {
            name: "from_guests",
            hook: Hook::Forward {
                priority: libc::NF_IP_PRI_FILTER,
            },
            rules: leaving,
        },
        Chain {
            name: "to_guests",
            hook: Hook::Forward {
                priority: libc::NF_IP_PRI_FILTER + 1,
            },
            rules: entering,
        },
        Chain {
            name: "translation",
            hook: Hook::SourceNat,
            rules: translated,
        },
    ]
}

fn may_leave(network: &Network, subnet: Ipv4Subnet) -> Vec<Rule> {
    let from = || Rule::new().iifname(&network.bridge);
    let mut rules = vec![from().oifname(&network.bridge).accept()];
    if matches!(network.mode, Mode::Nat | Mode::Routed) {
        rules.push(from().source(subnet).accept());
    }
    rules.push(from().drop());
    rules
}

fn may_enter(network: &Network, subnet: Ipv4Subnet) -> Vec<Rule> {
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

fn translation(network: &Network, subnet: Ipv4Subnet) -> Rule {
    Rule::new()
        .source(subnet)
        .not_destination(subnet)
        .not_oifname(&network.bridge)
        .masquerade()
}
