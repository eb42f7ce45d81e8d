//! One nftables table, made or replaced whole in one transaction or not at all.
//!
//! It belongs to this process (`NFT_TABLE_F_OWNER`): the kernel lets nobody else change it. When the process is killed it stays, for the
//! next one to replace (`NFT_TABLE_F_PERSIST`). A kernel before 6.9 knows no such table; there it belongs to nobody, and
//! [`crate::watch`] sees when somebody else changes it.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NLMSG_ERROR,
};
use netlink_sys::protocols::NETLINK_NETFILTER;
use rustix::io::Errno;

use super::expression::Rule;
use crate::netlink::{Attributes, HEADER, Netlink, acknowledged};

const NFTA_TABLE_NAME: u16 = 1;
const NFTA_TABLE_FLAGS: u16 = 2;
const NFT_TABLE_F_OWNER: u32 = 2;
const NFT_TABLE_F_PERSIST: u32 = 4;

/// Where in a packet's way a chain is asked.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Hook {
    /// Packets that have come in, before their way is looked up.
    PreRouting,
    /// Packets for this host.
    Input,
    /// Packets on their way through, before (lower) or after others.
    Forward { priority: i32 },
    /// Source addresses of packets about to leave.
    SourceNat,
}

/// A chain: accepts what no rule drops.
#[derive(Clone, Debug)]
pub(crate) struct Chain {
    pub(crate) name: &'static str,
    pub(crate) hook: Hook,
    pub(crate) rules: Vec<Rule>,
}

/// A table of family `inet` that stands, also when this value and the process are gone.
#[derive(Debug)]
pub(crate) struct Table {
    netlink: Netlink,
    port: u32,
    name: &'static str,
    flags: u32,
    chains: Vec<Chain>,
}

impl Table {
    /// Makes the table. `replace` says that one of that name is this program's, left by a run that was killed.
    pub(crate) fn install(
        name: &'static str,
        chains: Vec<Chain>,
        replace: bool,
    ) -> io::Result<Self> {
        let netlink = Netlink::open(NETLINK_NETFILTER)?;
        let mut table = Table {
            port: netlink.port()?,
            netlink,
            name,
            flags: NFT_TABLE_F_OWNER | NFT_TABLE_F_PERSIST,
            chains,
        };
        match table.make(replace) {
            Err(e) if Errno::from_io_error(&e) == Some(Errno::OPNOTSUPP) => {
                table.flags = 0;
                table.make(replace)?;
            }
            made => made?,
        }
        Ok(table)
    }

    /// The table that a run which was killed has left, to be removed.
    pub(crate) fn existing(name: &'static str) -> io::Result<Self> {
        let netlink = Netlink::open(NETLINK_NETFILTER)?;
        Ok(Table {
            port: netlink.port()?,
            netlink,
            name,
            flags: 0,
            chains: Vec::new(),
        })
    }

    /// Puts the table back as it was made, whatever others have done to it.
    pub(crate) fn restore(&mut self) -> io::Result<()> {
        self.make(true)
    }

    /// The port number of this process' changes.
    pub(crate) fn port(&self) -> u32 {
        self.port
    }

    fn make(&mut self, replace: bool) -> io::Result<()> {
        if replace {
            match self.make_after(true) {
                // None is there to be replaced.
                Err(e) if Errno::from_io_error(&e) == Some(Errno::NOENT) => {}
                made => return made,
            }
        }
        self.make_after(false)
    }

    fn make_after(&mut self, removal: bool) -> io::Result<()> {
        let name = self.name;
        let mut batch = Batch::begin(&mut self.netlink);
        if removal {
            batch.add(libc::NFT_MSG_DELTABLE, 0, named(name));
        }
        let table = named(name).number(NFTA_TABLE_FLAGS, self.flags);
        batch.add(libc::NFT_MSG_NEWTABLE, NLM_F_CREATE | NLM_F_EXCL, table);
        for chain in &self.chains {
            batch.add(libc::NFT_MSG_NEWCHAIN, NLM_F_CREATE, chain.describe(name));
            for rule in &chain.rules {
                batch.add(
                    libc::NFT_MSG_NEWRULE,
                    NLM_F_CREATE | NLM_F_APPEND,
                    chain.describe_rule(name, rule),
                );
            }
        }
        batch.commit()
    }

    /// Removes it.
    pub(crate) fn remove(mut self) -> io::Result<()> {
        let mut batch = Batch::begin(&mut self.netlink);
        batch.add(libc::NFT_MSG_DELTABLE, 0, named(self.name));
        match batch.commit() {
            Err(e) if Errno::from_io_error(&e) == Some(Errno::NOENT) => Ok(()),
            removed => removed,
        }
    }
}

fn named(table: &str) -> Attributes {
    Attributes::new().string(NFTA_TABLE_NAME, table)
}

impl Chain {
    fn describe(&self, table: &str) -> Attributes {
        const NFTA_CHAIN_TABLE: u16 = 1;
        const NFTA_CHAIN_NAME: u16 = 3;
        const NFTA_CHAIN_HOOK: u16 = 4;
        const NFTA_CHAIN_POLICY: u16 = 5;
        const NFTA_CHAIN_TYPE: u16 = 7;
        const NFTA_HOOK_HOOKNUM: u16 = 1;
        const NFTA_HOOK_PRIORITY: u16 = 2;
        let (kind, hook, priority) = match self.hook {
            Hook::PreRouting => ("filter", libc::NF_INET_PRE_ROUTING, libc::NF_IP_PRI_FILTER),
            Hook::Input => ("filter", libc::NF_INET_LOCAL_IN, libc::NF_IP_PRI_FILTER),
            Hook::Forward { priority } => ("filter", libc::NF_INET_FORWARD, priority),
            Hook::SourceNat => ("nat", libc::NF_INET_POST_ROUTING, libc::NF_IP_PRI_NAT_SRC),
        };
        let hook = Attributes::new()
            .number(NFTA_HOOK_HOOKNUM, hook as u32)
            .number(NFTA_HOOK_PRIORITY, priority.cast_unsigned());
        Attributes::new()
            .string(NFTA_CHAIN_TABLE, table)
            .string(NFTA_CHAIN_NAME, self.name)
            .nest(NFTA_CHAIN_HOOK, hook)
            .number(NFTA_CHAIN_POLICY, libc::NF_ACCEPT as u32)
            .string(NFTA_CHAIN_TYPE, kind)
    }

    fn describe_rule(&self, table: &str, rule: &Rule) -> Attributes {
        const NFTA_RULE_TABLE: u16 = 1;
        const NFTA_RULE_CHAIN: u16 = 2;
        const NFTA_RULE_EXPRESSIONS: u16 = 4;
        Attributes::new()
            .string(NFTA_RULE_TABLE, table)
            .string(NFTA_RULE_CHAIN, self.name)
            .nest(NFTA_RULE_EXPRESSIONS, rule.clone().into_attributes())
    }
}

/// Messages that take effect together.
struct Batch<'a> {
    netlink: &'a mut Netlink,
    bytes: Vec<u8>,
    first: u32,
    last: u32,
}

/// Message types that frame a batch (`NFNL_MSG_BATCH_BEGIN`, `NFNL_MSG_BATCH_END`).
const BEGIN: u16 = 0x10;
const END: u16 = 0x11;

impl<'a> Batch<'a> {
    fn begin(netlink: &'a mut Netlink) -> Self {
        let first = netlink.next_sequence();
        let mut batch = Batch {
            netlink,
            bytes: Vec::new(),
            first,
            last: first,
        };
        batch.frame(BEGIN, first);
        batch
    }

    /// Adds a message about tables, chains or rules of family `inet`. Each is acknowledged.
    fn add(&mut self, kind: libc::c_int, flags: u16, attributes: Attributes) {
        self.last = self.netlink.next_sequence();
        let kind = (libc::NFNL_SUBSYS_NFTABLES as u16) << 8 | kind as u16;
        let family = libc::NFPROTO_INET as u8;
        self.message(
            kind,
            flags | NLM_F_ACK,
            self.last,
            [family, 0, 0, 0],
            attributes,
        );
    }

    /// Sends it and waits until all of it is done, or for the first error: nothing is done then.
    fn commit(mut self) -> io::Result<()> {
        let end = self.netlink.next_sequence();
        self.frame(END, end);
        self.netlink.send(&self.bytes)?;
        let (first, last) = (self.first, self.last);
        self.netlink.receive(|raw| {
            // An error of the batch as a whole has the number of its beginning.
            let ours = raw.kind == NLMSG_ERROR && (first..=end).contains(&raw.sequence);
            Ok(ours && acknowledged(&raw, raw.sequence)? && raw.sequence == last)
        })
    }

    fn frame(&mut self, kind: u16, sequence: u32) {
        let [high, low] = (libc::NFNL_SUBSYS_NFTABLES as u16).to_be_bytes();
        self.message(kind, 0, sequence, [0, 0, high, low], Attributes::new());
    }

    /// `nlmsghdr`, `nfgenmsg`, attributes.
    fn message(
        &mut self,
        kind: u16,
        flags: u16,
        sequence: u32,
        general: [u8; 4],
        attributes: Attributes,
    ) {
        let attributes = attributes.into_bytes();
        let length = u32::try_from(HEADER + general.len() + attributes.len()).unwrap_or(u32::MAX);
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((flags | NLM_F_REQUEST).to_ne_bytes());
        self.bytes.extend(sequence.to_ne_bytes());
        self.bytes.extend(0u32.to_ne_bytes());
        self.bytes.extend(general);
        self.bytes.extend(attributes);
    }
}
