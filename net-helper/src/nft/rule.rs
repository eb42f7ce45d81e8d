//! Rules. Each method adds what its documentation shows in nft's syntax, as one or more of the kernel's expressions
//! (`linux/netfilter/nf_tables.h`), which load a register and compare it, change it or decide about the packet.

use std::net::Ipv4Addr;

use tap::InterfaceName;

use crate::netlink::Attributes;
use crate::subnet::Ipv4Subnet;

/// Register 1, of 16 bytes. No expression relies on what an earlier method has loaded.
const REGISTER: u32 = libc::NFT_REG_1 as u32;

/// States of a connection, as bits (`NF_CT_STATE_BIT`).
const ESTABLISHED: u32 = 1 << 1;
const RELATED: u32 = 1 << 2;
const NEW: u32 = 1 << 3;

/// A rule to which expressions are added.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rule(Attributes);

impl Rule {
    pub(crate) fn new() -> Self {
        Rule::default()
    }

    /// `iifname NAME`
    pub(crate) fn iifname(self, name: &InterfaceName) -> Self {
        self.meta(libc::NFT_META_IIFNAME as u32)
            .compare(libc::NFT_CMP_EQ as u32, &padded(name.as_str()))
    }

    /// `iifname != NAME`
    pub(crate) fn not_iifname(self, name: &InterfaceName) -> Self {
        self.meta(libc::NFT_META_IIFNAME as u32)
            .compare(libc::NFT_CMP_NEQ as u32, &padded(name.as_str()))
    }

    /// `iifname != lo`: the packet is not from this host to itself.
    pub(crate) fn not_iifname_lo(self) -> Self {
        self.meta(libc::NFT_META_IIFNAME as u32)
            .compare(libc::NFT_CMP_NEQ as u32, &padded("lo"))
    }

    /// `oifname NAME`
    pub(crate) fn oifname(self, name: &InterfaceName) -> Self {
        self.meta(libc::NFT_META_OIFNAME as u32)
            .compare(libc::NFT_CMP_EQ as u32, &padded(name.as_str()))
    }

    /// `oifname != NAME`
    pub(crate) fn not_oifname(self, name: &InterfaceName) -> Self {
        self.meta(libc::NFT_META_OIFNAME as u32)
            .compare(libc::NFT_CMP_NEQ as u32, &padded(name.as_str()))
    }

    /// `meta iifkind != "bridge"`
    pub(crate) fn not_iifkind_bridge(self) -> Self {
        const NFT_META_IIFKIND: u32 = 26;
        self.meta(NFT_META_IIFKIND)
            .compare(libc::NFT_CMP_NEQ as u32, &padded("bridge"))
    }

    /// `meta oifkind != "bridge"`
    pub(crate) fn not_oifkind_bridge(self) -> Self {
        const NFT_META_OIFKIND: u32 = 27;
        self.meta(NFT_META_OIFKIND)
            .compare(libc::NFT_CMP_NEQ as u32, &padded("bridge"))
    }

    /// `iifname "PREFIX*"`
    pub(crate) fn iifname_prefix(self, prefix: &str) -> Self {
        self.meta(libc::NFT_META_IIFNAME as u32)
            .compare(libc::NFT_CMP_EQ as u32, prefix.as_bytes())
    }

    /// `oifname "PREFIX*"`
    pub(crate) fn oifname_prefix(self, prefix: &str) -> Self {
        self.meta(libc::NFT_META_OIFNAME as u32)
            .compare(libc::NFT_CMP_EQ as u32, prefix.as_bytes())
    }

    /// `iif INDEX`
    pub(crate) fn iif(self, index: u32) -> Self {
        self.meta(libc::NFT_META_IIF as u32)
            .compare(libc::NFT_CMP_EQ as u32, &index.to_ne_bytes())
    }

    /// `oif INDEX`
    pub(crate) fn oif(self, index: u32) -> Self {
        self.meta(libc::NFT_META_OIF as u32)
            .compare(libc::NFT_CMP_EQ as u32, &index.to_ne_bytes())
    }

    /// `oif != INDEX`
    pub(crate) fn not_oif(self, index: u32) -> Self {
        self.meta(libc::NFT_META_OIF as u32)
            .compare(libc::NFT_CMP_NEQ as u32, &index.to_ne_bytes())
    }

    /// `iifgroup GROUP`
    pub(crate) fn iifgroup(self, group: u32) -> Self {
        self.meta(libc::NFT_META_IIFGROUP as u32)
            .compare(libc::NFT_CMP_EQ as u32, &group.to_ne_bytes())
    }

    /// `oifgroup GROUP`
    pub(crate) fn oifgroup(self, group: u32) -> Self {
        self.meta(libc::NFT_META_OIFGROUP as u32)
            .compare(libc::NFT_CMP_EQ as u32, &group.to_ne_bytes())
    }

    /// `oifgroup != GROUP`
    pub(crate) fn not_oifgroup(self, group: u32) -> Self {
        self.meta(libc::NFT_META_OIFGROUP as u32)
            .compare(libc::NFT_CMP_NEQ as u32, &group.to_ne_bytes())
    }

    /// `udp dport PORT`
    pub(crate) fn udp_dport(self, port: u16) -> Self {
        self.meta(libc::NFT_META_L4PROTO as u32)
            .compare(libc::NFT_CMP_EQ as u32, &[libc::IPPROTO_UDP as u8])
            .payload(libc::NFT_PAYLOAD_TRANSPORT_HEADER as u32, 2, 2)
            .compare(libc::NFT_CMP_EQ as u32, &port.to_be_bytes())
    }

    /// `ip saddr ADDRESS`
    pub(crate) fn ip_saddr(self, address: Ipv4Addr) -> Self {
        self.nfproto_ipv4()
            .payload(libc::NFT_PAYLOAD_NETWORK_HEADER as u32, 12, 4)
            .compare(libc::NFT_CMP_EQ as u32, &address.octets())
    }

    /// `ip daddr ADDRESS`
    pub(crate) fn ip_daddr(self, address: Ipv4Addr) -> Self {
        self.nfproto_ipv4()
            .payload(libc::NFT_PAYLOAD_NETWORK_HEADER as u32, 16, 4)
            .compare(libc::NFT_CMP_EQ as u32, &address.octets())
    }

    /// `ip saddr SUBNET`
    pub(crate) fn ip_saddr_in(self, subnet: Ipv4Subnet) -> Self {
        self.address(12, subnet, libc::NFT_CMP_EQ as u32)
    }

    /// `ip daddr SUBNET`
    pub(crate) fn ip_daddr_in(self, subnet: Ipv4Subnet) -> Self {
        self.address(16, subnet, libc::NFT_CMP_EQ as u32)
    }

    /// `ip daddr != SUBNET`
    pub(crate) fn not_ip_daddr_in(self, subnet: Ipv4Subnet) -> Self {
        self.address(16, subnet, libc::NFT_CMP_NEQ as u32)
    }

    /// `ct state established,related`: the packet belongs to a connection that the guest (or the host) has begun.
    pub(crate) fn ct_state_established(self) -> Self {
        self.ct_state(ESTABLISHED | RELATED)
    }

    /// `ct state new,established,related`: address translation applies to the packet.
    pub(crate) fn ct_state_valid(self) -> Self {
        self.ct_state(NEW | ESTABLISHED | RELATED)
    }

    /// `ct direction reply`: the packet goes to the side that has begun the connection.
    pub(crate) fn ct_reply(self) -> Self {
        const REPLY: u8 = 1;
        self.ct(libc::NFT_CT_DIRECTION as u32)
            .compare(libc::NFT_CMP_EQ as u32, &[REPLY])
    }

    fn ct(self, key: u32) -> Self {
        const NFTA_CT_DREG: u16 = 1;
        const NFTA_CT_KEY: u16 = 2;
        let load = Attributes::new()
            .number(NFTA_CT_DREG, REGISTER)
            .number(NFTA_CT_KEY, key);
        self.expression("ct", load)
    }

    fn ct_state(self, states: u32) -> Self {
        self.ct(libc::NFT_CT_STATE as u32)
            .bitwise(&states.to_ne_bytes(), &[0; 4])
            .compare(libc::NFT_CMP_NEQ as u32, &[0; 4])
    }

    /// `meta mark set meta mark or BITS`
    pub(crate) fn set_mark_bits(self, bits: u32) -> Self {
        const NFTA_META_KEY: u16 = 2;
        const NFTA_META_SREG: u16 = 3;
        let store = Attributes::new()
            .number(NFTA_META_KEY, libc::NFT_META_MARK as u32)
            .number(NFTA_META_SREG, REGISTER);
        self.meta(libc::NFT_META_MARK as u32)
            .bitwise(&(!bits).to_ne_bytes(), &bits.to_ne_bytes())
            .expression("meta", store)
    }

    /// `meta mark and BITS != 0`
    pub(crate) fn mark_bits(self, bits: u32) -> Self {
        self.meta(libc::NFT_META_MARK as u32)
            .bitwise(&bits.to_ne_bytes(), &[0; 4])
            .compare(libc::NFT_CMP_NEQ as u32, &[0; 4])
    }

    /// `accept`
    pub(crate) fn accept(self) -> Self {
        self.verdict(libc::NF_ACCEPT as u32)
    }

    /// `drop`
    pub(crate) fn drop(self) -> Self {
        self.verdict(libc::NF_DROP as u32)
    }

    /// `masquerade`: the packet gets the address of the interface that it leaves by.
    pub(crate) fn masquerade(self) -> Self {
        self.expression("masq", Attributes::new())
    }

    pub(crate) fn into_attributes(self) -> Attributes {
        self.0
    }

    fn expression(self, name: &str, data: Attributes) -> Self {
        const NFTA_LIST_ELEM: u16 = 1;
        const NFTA_EXPR_NAME: u16 = 1;
        const NFTA_EXPR_DATA: u16 = 2;
        let one = Attributes::new()
            .string(NFTA_EXPR_NAME, name)
            .nest(NFTA_EXPR_DATA, data);
        Rule(self.0.nest(NFTA_LIST_ELEM, one))
    }

    fn meta(self, key: u32) -> Self {
        const NFTA_META_DREG: u16 = 1;
        const NFTA_META_KEY: u16 = 2;
        let load = Attributes::new()
            .number(NFTA_META_DREG, REGISTER)
            .number(NFTA_META_KEY, key);
        self.expression("meta", load)
    }

    fn compare(self, operator: u32, with: &[u8]) -> Self {
        const NFTA_CMP_SREG: u16 = 1;
        const NFTA_CMP_OP: u16 = 2;
        const NFTA_CMP_DATA: u16 = 3;
        let data = Attributes::new()
            .number(NFTA_CMP_SREG, REGISTER)
            .number(NFTA_CMP_OP, operator)
            .nest(NFTA_CMP_DATA, value(with));
        self.expression("cmp", data)
    }

    /// Keeps the bits of `mask` in the register, then flips the bits of `flipped`.
    fn bitwise(self, mask: &[u8], flipped: &[u8]) -> Self {
        const NFTA_BITWISE_SREG: u16 = 1;
        const NFTA_BITWISE_DREG: u16 = 2;
        const NFTA_BITWISE_LEN: u16 = 3;
        const NFTA_BITWISE_MASK: u16 = 4;
        const NFTA_BITWISE_XOR: u16 = 5;
        let length = u32::try_from(mask.len()).unwrap_or(u32::MAX);
        let data = Attributes::new()
            .number(NFTA_BITWISE_SREG, REGISTER)
            .number(NFTA_BITWISE_DREG, REGISTER)
            .number(NFTA_BITWISE_LEN, length)
            .nest(NFTA_BITWISE_MASK, value(mask))
            .nest(NFTA_BITWISE_XOR, value(flipped));
        self.expression("bitwise", data)
    }

    fn payload(self, base: u32, offset: u32, length: u32) -> Self {
        const NFTA_PAYLOAD_DREG: u16 = 1;
        const NFTA_PAYLOAD_BASE: u16 = 2;
        const NFTA_PAYLOAD_OFFSET: u16 = 3;
        const NFTA_PAYLOAD_LEN: u16 = 4;
        let load = Attributes::new()
            .number(NFTA_PAYLOAD_DREG, REGISTER)
            .number(NFTA_PAYLOAD_BASE, base)
            .number(NFTA_PAYLOAD_OFFSET, offset)
            .number(NFTA_PAYLOAD_LEN, length);
        self.expression("payload", load)
    }

    /// `meta nfproto ipv4`
    pub(crate) fn nfproto_ipv4(self) -> Self {
        self.meta(libc::NFT_META_NFPROTO as u32)
            .compare(libc::NFT_CMP_EQ as u32, &[libc::NFPROTO_IPV4 as u8])
    }

    /// Compares the IPv4 address at an offset of the header with a subnet. No packet of another protocol matches.
    fn address(self, offset: u32, subnet: Ipv4Subnet, operator: u32) -> Self {
        self.nfproto_ipv4()
            .payload(libc::NFT_PAYLOAD_NETWORK_HEADER as u32, offset, 4)
            .bitwise(&subnet.mask().octets(), &[0; 4])
            .compare(operator, &subnet.network().octets())
    }

    fn verdict(self, code: u32) -> Self {
        const NFTA_IMMEDIATE_DREG: u16 = 1;
        const NFTA_IMMEDIATE_DATA: u16 = 2;
        const NFTA_DATA_VERDICT: u16 = 2;
        const NFTA_VERDICT_CODE: u16 = 1;
        let verdict = Attributes::new().nest(
            NFTA_DATA_VERDICT,
            Attributes::new().number(NFTA_VERDICT_CODE, code),
        );
        let data = Attributes::new()
            .number(NFTA_IMMEDIATE_DREG, libc::NFT_REG_VERDICT as u32)
            .nest(NFTA_IMMEDIATE_DATA, verdict);
        self.expression("immediate", data)
    }
}

fn value(bytes: &[u8]) -> Attributes {
    const NFTA_DATA_VALUE: u16 = 1;
    Attributes::new().bytes(NFTA_DATA_VALUE, bytes)
}

/// The name or kind of an interface with the zeroes after it, so that `br1` does not match `br10`.
fn padded(name: &str) -> [u8; libc::IFNAMSIZ] {
    let mut bytes = [0; libc::IFNAMSIZ];
    for (to, from) in bytes.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    bytes
}
