//! nftables, and who else on the host filters what guests send.
//!
//! Each base chain of the hook `forward`, whosever it is, has to let a packet pass. The rules of all of them are gone
//! through for two packets: the first of a connection from a guest, and its answer.

use std::io;
use std::process::Command;
use std::time::Duration;

use super::finding::Finding;
use super::host::{self, Host};
use super::nft::{self, Chain, Condition, Rule, Ruleset, Verdict};
use crate::bounded;
use crate::shell::quote;

const NFTABLES: &str = "nftables";
const OTHERS: &str = "others' filters";
const LEGACY: &str = "others' filters (iptables)";

/// The bridge of the network `default`, and the helper's own table.
const BRIDGE: &str = "bulkhead0";
const OWN: &str = "bulkhead";

pub(crate) fn check(_: &Host) -> Vec<Finding> {
    let mut found = match nft::list() {
        Ok(ruleset) => {
            let mut found = vec![Finding::ok(NFTABLES, "")];
            found.extend(others(&ruleset));
            found
        }
        Err(error) => vec![unlisted(&error)],
    };
    found.extend(legacy());
    found
}

fn unlisted(error: &io::Error) -> Finding {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            Finding::warn(NFTABLES, "only root may see what is filtered")
                .run_as_root("bulkhead doctor")
        }
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
            Finding::warn(NFTABLES, "the kernel takes too long to list the rules")
                .run_as_root("nft list ruleset")
        }
        _ => Finding::fail(NFTABLES, format!("{error}: guests have no network"))
            .run_as_root("modprobe nf_tables"),
    }
}

/// A packet that guests need to pass.
#[derive(Clone, Copy, Debug)]
struct Packet {
    what: &'static str,
    /// It comes in by the bridge, and leaves by another interface. Or else it is the other way round.
    is_out: bool,
    state: u32,
}

/// States of connections, as masks have them.
const ESTABLISHED: u32 = 2;
const NEW: u32 = 8;

const PACKETS: [Packet; 2] = [
    Packet {
        what: "what guests send",
        is_out: true,
        state: NEW,
    },
    Packet {
        what: "the answers to guests",
        is_out: false,
        state: ESTABLISHED,
    },
];

/// What happens to a packet in a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Accepted,
    Dropped,
    /// The rules have not decided.
    Undecided,
}

fn others(ruleset: &Ruleset) -> Vec<Finding> {
    let forward = |chain: &&Chain| {
        let families = [libc::NFPROTO_IPV4, libc::NFPROTO_INET];
        families.contains(&i32::from(chain.family))
            && chain.table != OWN
            && chain
                .base
                .is_some_and(|base| base.hook == libc::NF_INET_FORWARD.cast_unsigned())
    };
    let chains: Vec<_> = ruleset.chains.iter().filter(forward).collect();
    let found: Vec<_> = chains
        .iter()
        .filter_map(|chain| judge(chain, ruleset))
        .collect();
    if !found.is_empty() {
        return found;
    }
    let names: Vec<_> = chains.iter().map(|chain| shown(chain)).collect();
    vec![match names.is_empty() {
        true => Finding::ok(OTHERS, "none"),
        false => Finding::ok(
            OTHERS,
            format!("{}: guests' packets pass", names.join("; ")),
        ),
    }]
}

fn shown(chain: &Chain) -> String {
    format!("table {}, chain {}", chain.table, chain.name)
}

/// What is wrong with a chain of the hook `forward`.
fn judge(chain: &Chain, ruleset: &Ruleset) -> Option<Finding> {
    let fate = |packet, unknown| {
        let walk = Walk {
            ruleset,
            packet,
            unknown,
        };
        match (walk.chain(chain, 0), chain.base) {
            (Fate::Undecided, Some(base)) if base.drops => Fate::Dropped,
            (Fate::Undecided, _) => Fate::Accepted,
            (fate, _) => fate,
        }
    };
    let dropped = PACKETS
        .into_iter()
        .find(|packet| fate(*packet, false) == Fate::Dropped)?;
    let surely = fate(dropped, true) == Fate::Dropped;
    let shown = shown(chain);
    let finding = match surely {
        true => Finding::fail(OTHERS, format!("{shown}, drops {}", dropped.what)),
        false => Finding::warn(OTHERS, format!("{shown}, may drop {}", dropped.what)),
    };
    Some(finding.run_as_root(mend(chain, ruleset)))
}

/// A packet on its way through chains.
struct Walk<'a> {
    ruleset: &'a Ruleset,
    packet: Packet,
    /// Whether a rule that accepts by what is not known of the packet accepts it.
    unknown: bool,
}

impl Walk<'_> {
    fn chain(&self, chain: &Chain, depth: u32) -> Fate {
        /// The kernel allows no more.
        const DEEPEST: u32 = 16;
        if depth > DEEPEST {
            return Fate::Undecided;
        }
        for rule in &chain.rules {
            if !self.matches(rule) {
                continue;
            }
            match &rule.verdict {
                None => {}
                Some(Verdict::Accept) => return Fate::Accepted,
                Some(Verdict::Drop) => return Fate::Dropped,
                Some(Verdict::Return) => return Fate::Undecided,
                Some(Verdict::Goto(name)) => return self.named(chain, name, depth),
                Some(Verdict::Jump(name)) => match self.named(chain, name, depth) {
                    Fate::Undecided => {}
                    decided => return decided,
                },
            }
        }
        Fate::Undecided
    }

    fn named(&self, from: &Chain, name: &str, depth: u32) -> Fate {
        let mut chains = self.ruleset.chains.iter();
        let found = chains.find(|chain| {
            (chain.family, &*chain.table, &*chain.name) == (from.family, &*from.table, name)
        });
        found.map_or(Fate::Undecided, |chain| self.chain(chain, depth + 1))
    }

    fn matches(&self, rule: &Rule) -> bool {
        let may_accept = !matches!(rule.verdict, Some(Verdict::Drop | Verdict::Return) | None);
        let all: Option<bool> = rule
            .conditions
            .iter()
            .map(|condition| self.holds(condition))
            .try_fold(true, |all, holds| match (all, holds) {
                (_, Some(false)) => None,
                (all, Some(true)) => Some(all),
                (_, None) => Some(false),
            });
        match all {
            None => false,
            Some(true) => true,
            Some(false) => self.unknown && may_accept,
        }
    }

    /// Whether the condition holds; `None` where that is not known.
    fn holds(&self, condition: &Condition) -> Option<bool> {
        let bridge = |begins: &[u8], equal| Some(begins_with(begins) == equal);
        // Of the other interface it is only known that it is not the bridge.
        let other = |begins: &[u8], equal: bool| match begins_with(begins) && begins.contains(&0) {
            true => Some(!equal),
            false => None,
        };
        match condition {
            Condition::Input { begins, equal } if self.packet.is_out => bridge(begins, *equal),
            Condition::Output { begins, equal } if !self.packet.is_out => bridge(begins, *equal),
            Condition::Input { begins, equal } | Condition::Output { begins, equal } => {
                other(begins, *equal)
            }
            Condition::State { mask, within } => Some((mask & self.packet.state != 0) == *within),
            Condition::Other => None,
        }
    }
}

/// Whether the bridge's name, with zeroes after it, begins so.
fn begins_with(begins: &[u8]) -> bool {
    let mut name = [0; 16];
    for (to, from) in name.iter_mut().zip(BRIDGE.bytes()) {
        *to = from;
    }
    name.starts_with(begins)
}

/// The command after which the chain lets guests' packets pass; where its owner has one, the owner's.
fn mend(chain: &Chain, ruleset: &Ruleset) -> String {
    let has = |wanted: &dyn Fn(&str) -> bool| {
        let mut chains = ruleset
            .chains
            .iter()
            .filter(|other| other.table == chain.table);
        chains.any(|other| wanted(&other.name))
    };
    if chain.table == "firewalld" {
        return format!(
            "firewall-cmd --permanent --zone=trusted --add-interface={BRIDGE} && firewall-cmd --reload"
        );
    }
    if has(&|name| name.starts_with("ufw-")) {
        return format!("ufw route allow in on {BRIDGE} && ufw route allow out on {BRIDGE}");
    }
    // Docker's own place for others' rules, which it goes through first and does not replace.
    let target = match has(&|name| name == "DOCKER-USER") {
        true => "DOCKER-USER",
        false => &chain.name,
    };
    let is_iptables = i32::from(chain.family) == libc::NFPROTO_IPV4 && chain.table == "filter";
    if host::program("nft").is_none() && is_iptables && host::program("iptables").is_some() {
        let target = quote(target.as_ref());
        let target = target.display();
        return format!(
            "iptables -I {target} -i {BRIDGE} -j ACCEPT && iptables -I {target} -o {BRIDGE} -j ACCEPT"
        );
    }
    let family = match i32::from(chain.family) {
        libc::NFPROTO_IPV4 => "ip",
        _ => "inet",
    };
    let (table, target) = (quote(chain.table.as_ref()), quote(target.as_ref()));
    let rule = |direction| {
        let (table, target) = (table.display(), target.display());
        format!("nft insert rule {family} {table} {target} {direction} {BRIDGE} accept")
    };
    let rules = format!("{} && {}", rule("iifname"), rule("oifname"));
    match host::program("nft") {
        Some(_) => rules,
        None => format!("{} && {rules}", host::install("nftables")),
    }
}

/// The older rules of `iptables-legacy`, which nftables does not have.
fn legacy() -> Option<Finding> {
    const LIMIT: Duration = Duration::from_secs(5);
    let tables = host::read("/proc/net/ip_tables_names").unwrap_or_default();
    if !tables.lines().any(|table| table == "filter") {
        return None;
    }
    let Some(program) = host::program("iptables-legacy") else {
        let why = "a table filter is loaded, and iptables-legacy is not installed to list it";
        return Some(Finding::warn(LEGACY, why).run_as_root(host::install("iptables")));
    };
    let mut command = Command::new(program);
    command.args(["-S", "FORWARD"]);
    Some(match bounded::run(command, LIMIT) {
        Ok(ended) if ended.status.success() => judge_legacy(&ended.stdout),
        Ok(ended) => {
            Finding::warn(LEGACY, ended.stderr.trim_end()).run_as_root("iptables-legacy -S FORWARD")
        }
        Err(error) => {
            Finding::warn(LEGACY, error.to_string()).run_as_root("iptables-legacy -S FORWARD")
        }
    })
}

fn judge_legacy(rules: &str) -> Finding {
    let has = |wanted: &str| rules.lines().any(|line| line == wanted);
    let accepts = |way: &str| has(&format!("-A FORWARD {way} {BRIDGE} -j ACCEPT"));
    if !has("-P FORWARD DROP") || (accepts("-i") && accepts("-o")) {
        return Finding::ok(LEGACY, "guests' packets pass");
    }
    Finding::fail(LEGACY, "chain FORWARD drops what guests send").run_as_root(format!(
        "iptables-legacy -I FORWARD -i {BRIDGE} -j ACCEPT && iptables-legacy -I FORWARD -o {BRIDGE} -j ACCEPT"
    ))
}

#[cfg(test)]
#[path = "filters_tests.rs"]
mod tests;
