//! One nftables table, which is created or replaced in one transaction.
//!
//! This process is the table's owner (`NFT_TABLE_F_OWNER`), and the kernel lets no other process change it. When the
//! process is killed, the table stays, and the next run replaces it (`NFT_TABLE_F_PERSIST`). Before Linux 6.9 there is
//! no such flag; then the table has no owner, and it is restored when notifications report that somebody else has
//! changed it.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NLMSG_ERROR,
};
use netlink_sys::protocols::NETLINK_NETFILTER;
use rustix::io::Errno;

use super::rule::Rule;
use crate::netlink::{Attributes, HEADER, Netlink, acknowledged};

const NFTA_TABLE_NAME: u16 = 1;
const NFTA_TABLE_FLAGS: u16 = 2;
const NFT_TABLE_F_OWNER: u32 = 2;
const NFT_TABLE_F_PERSIST: u32 = 4;

/// Where in a packet's path a chain is evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    /// Packets that have come in, before they belong to a connection.
    Raw,
    /// Packets that have come in, before they are routed.
    PreRouting,
    /// Packets for this host.
    Input,
    /// Routed packets. Chains of lower priority are evaluated first.
    Forward { priority: i32 },
    /// The first packet of each connection that leaves this host, to translate its source address.
    SourceNat,
    /// Packets that leave this host, with their translated source addresses.
    AfterSourceNat,
}

/// A base chain, whose policy is `accept`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) name: &'static str,
    pub(crate) hook: Hook,
    pub(crate) rules: Vec<Rule>,
}

/// A table of family `inet`. It stays when this value is dropped, and when the process ends.
#[derive(Debug)]
pub(crate) struct Table {
    netlink: Netlink,
    /// The netlink port number of `netlink`.
    port: u32,
    name: &'static str,
    flags: u32,
    chains: Vec<Chain>,
}

impl Table {
    /// Creates the table. `replace` means that a table of this name, if there is one, is of a previous run and is
    /// replaced.
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
        match table.commit(replace) {
            Err(e) if Errno::from_io_error(&e) == Some(Errno::OPNOTSUPP) => {
                table.flags = 0;
                table.commit(replace)?;
            }
            committed => committed?,
        }
        Ok(table)
    }

    /// The table that a previous run has left, to be removed.
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

    /// Replaces the table by one that is as it was installed, whatever others have done to it.
    pub(crate) fn restore(&mut self) -> io::Result<()> {
        self.commit(true)
    }

    /// Replaces the chains, unless they are these already.
    pub(crate) fn set_chains(&mut self, chains: Vec<Chain>) -> io::Result<()> {
        if self.chains == chains {
            return Ok(());
        }
        self.chains = chains;
        self.restore()
    }

    /// The netlink port number that notifications of this process's own changes contain.
    pub(crate) fn port(&self) -> u32 {
        self.port
    }

    fn commit(&mut self, replace: bool) -> io::Result<()> {
        if replace {
            match self.try_commit(true) {
                // There is no table to replace.
                Err(e) if Errno::from_io_error(&e) == Some(Errno::NOENT) => {}
                committed => return committed,
            }
        }
        self.try_commit(false)
    }

    fn try_commit(&mut self, replace: bool) -> io::Result<()> {
        let name = self.name;
        let mut batch = Batch::begin(&mut self.netlink);
        if replace {
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

    /// Removes the table.
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
            Hook::Raw => ("filter", libc::NF_INET_PRE_ROUTING, libc::NF_IP_PRI_RAW),
            Hook::PreRouting => ("filter", libc::NF_INET_PRE_ROUTING, libc::NF_IP_PRI_FILTER),
            Hook::Input => ("filter", libc::NF_INET_LOCAL_IN, libc::NF_IP_PRI_FILTER),
            Hook::Forward { priority } => ("filter", libc::NF_INET_FORWARD, priority),
            Hook::SourceNat => ("nat", libc::NF_INET_POST_ROUTING, libc::NF_IP_PRI_NAT_SRC),
            Hook::AfterSourceNat => {
                let priority = libc::NF_IP_PRI_NAT_SRC + 1;
                ("filter", libc::NF_INET_POST_ROUTING, priority)
            }
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

/// Messages that take effect together: one transaction.
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

    /// Adds a message about a table, a chain or a rule of family `inet`. The kernel acknowledges each message.
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

    /// Sends the batch and waits for its acknowledgements. After an error, none of its messages has an effect.
    fn commit(mut self) -> io::Result<()> {
        let end = self.netlink.next_sequence();
        self.frame(END, end);
        self.netlink.send(&self.bytes)?;
        let (first, last) = (self.first, self.last);
        self.netlink.receive(|raw| {
            // An error of the whole batch has the sequence number of its begin message.
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
