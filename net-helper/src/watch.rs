//! What others do to this program's bridges and rules, as the kernel reports it.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};

use crate::netlink::{HEADER, Netlink, Raw};
use crate::nft;

/// Links, IPv4 addresses, IPv4 and IPv6 routing rules (`rtnetlink.h`).
const ROUTE_GROUPS: &[u32] = &[1, 5, 8, 19];
/// nf_tables (`nfnetlink.h`).
const RULES_GROUP: u32 = 7;

/// How long after one repair the next may be: somebody else's program may undo each of them.
const PAUSE: Duration = Duration::from_millis(100);

/// Reports, and what is to be done about them.
#[derive(Debug)]
pub(crate) struct Watch {
    interfaces: Netlink,
    rules: Netlink,
    changed: bool,
    ports: Ports,
    not_before: Instant,
}

/// Adopted TAP devices that have changed.
#[derive(Debug)]
pub(crate) enum Ports {
    Some(BTreeSet<u32>),
    /// Reports were lost.
    Any,
}

/// What is watched, by index.
pub(crate) struct Watched<'a> {
    pub(crate) is_bridge: &'a dyn Fn(u32) -> bool,
    pub(crate) is_adopted: &'a dyn Fn(u32) -> bool,
    /// A bridge is missing: every new interface may be it.
    pub(crate) is_missing: bool,
}

impl Watch {
    pub(crate) fn open() -> Result<Self> {
        let listen = || -> io::Result<_> {
            Ok((
                Netlink::listen(NETLINK_ROUTE, ROUTE_GROUPS)?,
                Netlink::listen(NETLINK_NETFILTER, &[RULES_GROUP])?,
            ))
        };
        let (interfaces, rules) = listen().context("cannot watch this host's interfaces")?;
        Ok(Watch {
            interfaces,
            rules,
            changed: false,
            ports: Ports::Some(BTreeSet::new()),
            not_before: Instant::now(),
        })
    }

    pub(crate) fn watched(&self) -> [BorrowedFd<'_>; 2] {
        [self.interfaces.as_fd(), self.rules.as_fd()]
    }

    /// Takes what was reported; `own_port` is the socket of this program's own changes of the table.
    pub(crate) fn take(&mut self, watched: &Watched<'_>, own_port: Option<u32>) {
        let mut changed = false;
        let ports = &mut self.ports;
        let interfaces = self.interfaces.reports(|raw| {
            changed |= concerns_bridge(&raw, watched);
            if let Ports::Some(ports) = ports {
                ports.extend(adopted_port(&raw, watched));
            }
        });
        if interfaces.is_err() {
            self.ports = Ports::Any;
        }
        let rules = self
            .rules
            .reports(|raw| changed |= Some(raw.port) != own_port && concerns_table(&raw));
        // Lost reports may have been of anything.
        self.changed |= changed || interfaces.is_err() || rules.is_err();
    }

    /// Whether it is time to look at everything.
    pub(crate) fn is_due(&mut self) -> bool {
        let due = self.changed && self.not_before <= Instant::now();
        if due {
            self.changed = false;
            self.not_before = Instant::now() + PAUSE;
        }
        due
    }

    /// The adopted TAP devices that have changed since this was last asked.
    pub(crate) fn take_ports(&mut self) -> Ports {
        std::mem::replace(&mut self.ports, Ports::Some(BTreeSet::new()))
    }

    /// When it will be.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.changed.then_some(self.not_before)
    }
}

/// A bridge or its address is gone, or a routing rule is; or there is a new interface.
fn concerns_bridge(raw: &Raw<'_>, watched: &Watched<'_>) -> bool {
    match raw.kind {
        libc::RTM_DELLINK | libc::RTM_DELADDR => (watched.is_bridge)(index(raw)),
        libc::RTM_DELRULE => true,
        libc::RTM_NEWLINK => watched.is_missing,
        _ => false,
    }
}

/// An adopted TAP device is changed or gone: its last user may have closed it.
fn adopted_port(raw: &Raw<'_>, watched: &Watched<'_>) -> Option<u32> {
    let is_of_a_link = matches!(raw.kind, libc::RTM_NEWLINK | libc::RTM_DELLINK);
    let index = index(raw);
    (is_of_a_link && (watched.is_adopted)(index)).then_some(index)
}

/// The interface that a report is of; both kinds of messages have it in the same place.
fn index(raw: &Raw<'_>) -> u32 {
    raw.whole
        .get(HEADER + 4..)
        .and_then(|rest| rest.first_chunk::<4>())
        .map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}

/// The table, one of its chains or rules was changed: each such message names the table in its first attribute.
fn concerns_table(raw: &Raw<'_>) -> bool {
    const GENERAL: usize = 4;
    const ATTRIBUTE: usize = 4;
    let [_, subsystem] = raw.kind.to_le_bytes();
    let name = raw.whole.get(HEADER + GENERAL + ATTRIBUTE..);
    let family = raw.whole.get(HEADER).copied();
    i32::from(subsystem) == libc::NFNL_SUBSYS_NFTABLES
        && family.map(i32::from) == Some(libc::NFPROTO_INET)
        && name.is_some_and(|name| {
            name.starts_with(nft::TABLE.as_bytes()) && name.get(nft::TABLE.len()) == Some(&0)
        })
}
