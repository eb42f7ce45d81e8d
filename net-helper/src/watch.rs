//! Notifications of the kernel about changes that others make to this program's bridges, TAP devices and rules.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};

use crate::link::Link;
use crate::netlink::{self, HEADER, Netlink, Raw};
use crate::nft;

/// The multicast groups of links, IPv4 addresses, IPv4 and IPv6 routing rules (`rtnetlink.h`).
const ROUTE_GROUPS: &[u32] = &[1, 5, 8, 19];
/// The multicast group of nf_tables (`nfnetlink.h`).
const NFTABLES_GROUP: u32 = 7;

/// The least time between two repairs, in case another program undoes each of them.
const REPAIR_INTERVAL: Duration = Duration::from_millis(100);

/// The notification sockets, and what the notifications read so far require.
#[derive(Debug)]
pub(crate) struct Watch {
    interfaces: Netlink,
    rules: Netlink,
    needs_repair: bool,
    ports: Ports,
    /// The earliest time of the next repair.
    not_before: Instant,
}

/// Adopted TAP devices that have changed.
#[derive(Debug)]
pub(crate) enum Ports {
    Some(BTreeSet<u32>),
    /// Notifications were lost: it may be any of them.
    Any,
}

/// The interfaces to watch, by index.
pub(crate) struct Watched<'a> {
    pub(crate) is_bridge: &'a dyn Fn(u32) -> bool,
    pub(crate) is_adopted: &'a dyn Fn(u32) -> bool,
    /// Whether an interface is a bridge of this program and has lost the name or the marks that the rules know it by.
    pub(crate) is_disguised: &'a dyn Fn(&Link) -> bool,
    /// Whether an interface is on top of one of this program's, and the rules do not know it yet.
    pub(crate) is_above: &'a dyn Fn(&Link) -> bool,
    /// Whether the rules know an interface as one that is on top of one of this program's.
    pub(crate) was_above: &'a dyn Fn(u32) -> bool,
    /// Whether a bridge or its name is missing, so that every change of an interface may be what it waits for.
    pub(crate) is_missing: bool,
}

impl Watch {
    pub(crate) fn open() -> Result<Self> {
        let listen = || -> io::Result<_> {
            Ok((
                Netlink::listen(NETLINK_ROUTE, ROUTE_GROUPS)?,
                Netlink::listen(NETLINK_NETFILTER, &[NFTABLES_GROUP])?,
            ))
        };
        let (interfaces, rules) = listen().context("cannot watch this host's interfaces")?;
        Ok(Watch {
            interfaces,
            rules,
            needs_repair: false,
            ports: Ports::Some(BTreeSet::new()),
            not_before: Instant::now(),
        })
    }

    pub(crate) fn watched(&self) -> [BorrowedFd<'_>; 2] {
        [self.interfaces.as_fd(), self.rules.as_fd()]
    }

    /// Reads the notifications that have arrived. `own_port` is the netlink port by which this program itself changes
    /// the table.
    pub(crate) fn read(&mut self, watched: &Watched<'_>, own_port: Option<u32>) {
        let mut changed = false;
        let ports = &mut self.ports;
        let interfaces = self.interfaces.read_notifications(|raw| {
            changed |= concerns_bridge(&raw, watched);
            if let Ports::Some(ports) = ports {
                ports.extend(adopted_port(&raw, watched));
            }
        });
        if interfaces.is_err() {
            self.ports = Ports::Any;
        }
        let rules = self.rules.read_notifications(|raw| {
            changed |= Some(raw.port) != own_port && concerns_table(&raw)
        });
        // A notification that was lost may have been about anything.
        self.needs_repair |= changed || interfaces.is_err() || rules.is_err();
    }

    /// Whether a repair is due now. The next one is then due after [`REPAIR_INTERVAL`] at the earliest.
    pub(crate) fn is_due(&mut self) -> bool {
        let due = self.needs_repair && self.not_before <= Instant::now();
        if due {
            self.needs_repair = false;
            self.not_before = Instant::now() + REPAIR_INTERVAL;
        }
        due
    }

    /// The adopted TAP devices that have changed since the last call.
    pub(crate) fn take_ports(&mut self) -> Ports {
        std::mem::replace(&mut self.ports, Ports::Some(BTreeSet::new()))
    }

    /// When the next repair is due, if one is needed.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.needs_repair.then_some(self.not_before)
    }
}

/// Whether a bridge, its address or a routing rule has been removed, a bridge has been disguised, an interface on top
/// of this program's has come or gone, or an interface may be the missing bridge.
fn concerns_bridge(raw: &Raw<'_>, watched: &Watched<'_>) -> bool {
    match raw.kind {
        libc::RTM_DELADDR => (watched.is_bridge)(index(raw)),
        libc::RTM_DELLINK => {
            let index = index(raw);
            watched.is_missing || (watched.is_bridge)(index) || (watched.was_above)(index)
        }
        libc::RTM_DELRULE => true,
        libc::RTM_NEWLINK => {
            let concerns = |link: Link| {
                let is_bridge = (watched.is_bridge)(link.index);
                (is_bridge && (watched.is_disguised)(&link)) || (watched.is_above)(&link)
            };
            // Most links are neither, and clients wait while hundreds of them are read.
            let may_concern = (watched.is_bridge)(index(raw)) || is_on_top(raw);
            watched.is_missing || (may_concern && link(raw).is_some_and(concerns))
        }
        _ => false,
    }
}

/// The whole of a link. The kernel also notifies of its parts alone, such as what it is as a port of a bridge.
fn link(raw: &Raw<'_>) -> Option<Link> {
    let family = raw.whole.get(HEADER).copied();
    match netlink::parse(raw)? {
        RouteNetlinkMessage::NewLink(message) if family.map(i32::from) == Some(libc::AF_UNSPEC) => {
            Some(message.into())
        }
        _ => None,
    }
}

/// Whether a link has the attribute `IFLA_LINK`, the interface that it is on top of.
fn is_on_top(raw: &Raw<'_>) -> bool {
    /// The length of `struct ifinfomsg`, after which attributes begin.
    const GENERAL: usize = 16;
    let mut rest = raw.whole.get(HEADER + GENERAL..).unwrap_or_default();
    while let Some((&[a, b, c, d], _)) = rest.split_first_chunk() {
        let length = usize::from(u16::from_ne_bytes([a, b]));
        if u16::from_ne_bytes([c, d]) == libc::IFLA_LINK {
            return true;
        }
        // Attributes are aligned to 4 bytes. One that is shorter than its own header ends the list.
        let next = length.next_multiple_of(4);
        rest = match length {
            4.. => rest.get(next..).unwrap_or_default(),
            _ => return false,
        };
    }
    false
}

/// The index of an adopted TAP device that has changed or been removed: its last user may have closed it.
fn adopted_port(raw: &Raw<'_>, watched: &Watched<'_>) -> Option<u32> {
    let is_of_a_link = matches!(raw.kind, libc::RTM_NEWLINK | libc::RTM_DELLINK);
    let index = index(raw);
    (is_of_a_link && (watched.is_adopted)(index)).then_some(index)
}

/// The interface index in a notification. Messages about links and about addresses have it at the same offset.
fn index(raw: &Raw<'_>) -> u32 {
    raw.whole
        .get(HEADER + 4..)
        .and_then(|rest| rest.first_chunk::<4>())
        .map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}

/// Whether the table, one of its chains or one of its rules has changed. The first attribute of each such message is
/// the table's name.
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
