//! Interfaces, addresses and routes of this host, through rtnetlink.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    AfSpecInet, AfSpecInet6, AfSpecUnspec, BridgeStpState, In6AddrGenMode, InfoBridge, InfoData,
    InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use rustix::io::Errno;
use tap::InterfaceName;

use crate::netlink::{Attributes, Netlink};
use crate::subnet::Ipv4Subnet;

/// The smallest MTU of an interface that has IPv6 (RFC 8200, section 5).
const IPV6_MIN_MTU: u32 = 1280;

/// The MTU that the kernel gives a new TAP device.
pub(crate) const DEFAULT_MTU: u32 = 1500;

/// This host's interfaces.
#[derive(Debug)]
pub(crate) struct Links {
    netlink: Netlink,
    ipv6: bool,
}

/// An interface as the kernel describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) mtu: u32,
    pub(crate) mac: Vec<u8>,
    pub(crate) alias: String,
    pub(crate) group: u32,
    pub(crate) is_bridge: bool,
    pub(crate) is_tap: bool,
    /// The bridge that it is a port of.
    pub(crate) controller: Option<u32>,
    /// The interface of this network namespace that it is on top of.
    pub(crate) below: Option<u32>,
    /// A TAP device has a carrier while somebody has it open.
    pub(crate) has_carrier: bool,
}

/// What marks an interface as its owner's ([`crate::identity`]). Both stay when somebody gives the interface another name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) alias: String,
    /// The interface group (`IFLA_GROUP`), by which the nftables table knows the interface.
    pub(crate) group: u32,
}

/// A range of IPv4 addresses that is in use on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InUse {
    pub(crate) address: Ipv4Addr,
    pub(crate) prefix: u8,
    /// The interface's index, if it is on one.
    pub(crate) index: Option<u32>,
}

impl Links {
    pub(crate) fn open() -> io::Result<Self> {
        // A kernel without IPv6 refuses requests with IPv6 attributes.
        let ipv6 = Path::new("/proc/sys/net/ipv6").exists();
        Ok(Links {
            netlink: Netlink::open(NETLINK_ROUTE)?,
            ipv6,
        })
    }

    pub(crate) fn has_ipv6(&self) -> bool {
        self.ipv6
    }

    /// Makes one request and waits for its acknowledgement.
    pub(crate) fn request(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.netlink.request(message, flags)
    }

    /// Dumps all objects of a kind.
    pub(crate) fn dump(
        &mut self,
        message: RouteNetlinkMessage,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.netlink.dump(message)
    }

    /// The interface of that name, if there is one.
    pub(crate) fn find(&mut self, name: &InterfaceName) -> io::Result<Option<Link>> {
        let mut message = LinkMessage::default();
        message
            .attributes
            .push(LinkAttribute::IfName(name.to_string()));
        self.get(message)
    }

    /// The interface with that index, if there is one.
    pub(crate) fn by_index(&mut self, index: u32) -> io::Result<Option<Link>> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.get(message)
    }

    fn get(&mut self, message: LinkMessage) -> io::Result<Option<Link>> {
        match self.netlink.get(RouteNetlinkMessage::GetLink(message)) {
            Ok(Some(RouteNetlinkMessage::NewLink(message))) => Ok(Some(Link::from(message))),
            Ok(_) => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the kernel has not answered with a link",
            )),
            Err(e) if Errno::from_io_error(&e) == Some(Errno::NODEV) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Creates a bridge and brings it up. It gets a MAC address of its own, or else its address would change with its
    /// ports.
    pub(crate) fn create_bridge(
        &mut self,
        name: &InterfaceName,
        mac: &[u8],
        identity: Identity,
    ) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(name.to_string()),
            LinkAttribute::Address(mac.to_vec()),
            LinkAttribute::Group(identity.group),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Bridge),
                // A port forwards at once: there are no other bridges behind guests, so no loops.
                LinkInfo::Data(InfoData::Bridge(vec![
                    InfoBridge::ForwardDelay(0),
                    InfoBridge::StpState(BridgeStpState::Disabled),
                ])),
            ]),
        ];
        self.netlink.request(
            RouteNetlinkMessage::NewLink(message),
            NLM_F_CREATE | NLM_F_EXCL,
        )?;
        let attributes = vec![
            LinkAttribute::IfName(name.to_string()),
            LinkAttribute::IfAlias(identity.alias),
        ];
        self.bring_up(attributes, Vec::new(), true)
    }

    /// Makes an interface a port of a bridge and brings it up. Returns its index.
    pub(crate) fn attach(
        &mut self,
        name: &InterfaceName,
        bridge: u32,
        mac: [u8; 6],
        mtu: u32,
        identity: Option<Identity>,
    ) -> io::Result<u32> {
        // In a request of its own: below IPv6's smallest MTU the interface loses IPv6, and the kernel refuses IPv6
        // attributes.
        if mtu != DEFAULT_MTU {
            let mut message = LinkMessage::default();
            message.attributes = vec![
                LinkAttribute::IfName(name.to_string()),
                LinkAttribute::Mtu(mtu),
            ];
            self.netlink
                .request(RouteNetlinkMessage::NewLink(message), 0)?;
        }
        let mut attributes = vec![
            LinkAttribute::IfName(name.to_string()),
            LinkAttribute::Address(mac.to_vec()),
            LinkAttribute::Controller(bridge),
        ];
        if let Some(Identity { alias, group }) = identity {
            attributes.extend([LinkAttribute::IfAlias(alias), LinkAttribute::Group(group)]);
        }
        self.bring_up(attributes, vec![forwarding_off()], mtu >= IPV6_MIN_MTU)?;
        match self.find(name)? {
            Some(link) => Ok(link.index),
            None => Err(Errno::NODEV.into()),
        }
    }

    /// Sets attributes of an interface and brings it up, without an IPv6 address: a bridge and its ports forward the
    /// guests' IPv6 frames, and the host takes no part in that.
    fn bring_up(
        &mut self,
        mut attributes: Vec<LinkAttribute>,
        mut families: Vec<AfSpecUnspec>,
        has_ipv6: bool,
    ) -> io::Result<()> {
        if self.ipv6 && has_ipv6 {
            let none = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
            families.push(AfSpecUnspec::Inet6(vec![none]));
        }
        if !families.is_empty() {
            attributes.push(LinkAttribute::AfSpecUnspec(families));
        }
        let mut message = LinkMessage::default();
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        message.attributes = attributes;
        self.netlink
            .request(RouteNetlinkMessage::NewLink(message), 0)
    }

    /// Makes an interface a port of a bridge. Succeeds if the interface has been removed.
    pub(crate) fn set_controller(&mut self, port: u32, bridge: u32) -> io::Result<()> {
        self.change(port, vec![LinkAttribute::Controller(bridge)])
    }

    /// Marks an interface. Succeeds if the interface has been removed.
    pub(crate) fn set_identity(&mut self, index: u32, identity: Identity) -> io::Result<()> {
        let Identity { alias, group } = identity;
        let marks = vec![LinkAttribute::IfAlias(alias), LinkAttribute::Group(group)];
        self.change(index, marks)
    }

    /// Gives an interface that is up another name. Succeeds if the interface has been removed.
    pub(crate) fn rename(&mut self, index: u32, name: &InterfaceName) -> io::Result<()> {
        let attribute = LinkAttribute::IfName(name.to_string());
        match self.change(index, vec![attribute.clone()]) {
            // Before Linux 6.2, an interface that is up keeps its name.
            Err(e) if Errno::from_io_error(&e) == Some(Errno::BUSY) => {
                self.set_up(index, false)?;
                let renamed = self.change(index, vec![attribute]);
                self.set_up(index, true).and(renamed)
            }
            renamed => renamed,
        }
    }

    fn set_up(&mut self, index: u32, up: bool) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.change_mask = LinkFlags::Up;
        message.header.flags.set(LinkFlags::Up, up);
        let request = RouteNetlinkMessage::NewLink(message);
        unless_gone(self.netlink.request(request, 0))
    }

    /// Removes an interface. Succeeds if somebody has removed it before.
    pub(crate) fn delete(&mut self, index: u32) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        let request = RouteNetlinkMessage::DelLink(message);
        unless_gone(self.netlink.request(request, 0))
    }

    /// Puts an interface in a group. Succeeds if the interface has been removed.
    pub(crate) fn set_group(&mut self, index: u32, group: u32) -> io::Result<()> {
        self.change(index, vec![LinkAttribute::Group(group)])
    }

    fn change(&mut self, index: u32, attributes: Vec<LinkAttribute>) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes = attributes;
        let request = RouteNetlinkMessage::NewLink(message);
        unless_gone(self.netlink.request(request, 0))
    }

    /// Removes all interfaces of a group.
    pub(crate) fn delete_group(&mut self, group: u32) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::Group(group)];
        let request = RouteNetlinkMessage::DelLink(message);
        unless_gone(self.netlink.request(request, 0))
    }

    /// All interfaces.
    pub(crate) fn all(&mut self) -> io::Result<Vec<Link>> {
        let all = self
            .netlink
            .dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
        let link = |message| match message {
            RouteNetlinkMessage::NewLink(message) => Some(Link::from(message)),
            _ => None,
        };
        Ok(all.into_iter().filter_map(link).collect())
    }

    /// Gives an interface the host's address in a subnet.
    pub(crate) fn add_address(&mut self, index: u32, subnet: Ipv4Subnet) -> io::Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.prefix_len = subnet.prefix();
        message.header.index = index;
        message.attributes = vec![
            AddressAttribute::Local(IpAddr::V4(subnet.gateway())),
            AddressAttribute::Address(IpAddr::V4(subnet.gateway())),
            AddressAttribute::Broadcast(subnet.broadcast()),
        ];
        self.netlink.request(
            RouteNetlinkMessage::NewAddress(message),
            NLM_F_CREATE | NLM_F_REPLACE,
        )
    }

    /// Every range of IPv4 addresses that an interface has or a route leads to, except default routes.
    pub(crate) fn in_use(&mut self) -> io::Result<Vec<InUse>> {
        let mut address = AddressMessage::default();
        address.header.family = AddressFamily::Inet;
        let mut route = RouteMessage::default();
        route.header.address_family = AddressFamily::Inet;
        let mut all = self
            .netlink
            .dump(RouteNetlinkMessage::GetAddress(address))?;
        all.extend(self.netlink.dump(RouteNetlinkMessage::GetRoute(route))?);
        Ok(all.iter().filter_map(InUse::from_message).collect())
    }
}

fn unless_gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if Errno::from_io_error(&e) == Some(Errno::NODEV) => Ok(()),
        other => other,
    }
}

/// `net.ipv4.conf.IFACE.forwarding=0`: the host does not route packets that come in by the interface itself when its
/// bridge has been removed.
fn forwarding_off() -> AfSpecUnspec {
    const IFLA_INET_CONF: u16 = 1;
    const IPV4_DEVCONF_FORWARDING: u16 = 1;
    let off = Attributes::new().bytes(IPV4_DEVCONF_FORWARDING, &0u32.to_ne_bytes());
    AfSpecUnspec::Inet(vec![AfSpecInet::Other(DefaultNla::new(
        IFLA_INET_CONF,
        off.into_bytes(),
    ))])
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let mut link = Link {
            index: message.header.index,
            ..Link::default()
        };
        let mut is_elsewhere = false;
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Address(mac) => link.mac = mac,
                LinkAttribute::IfAlias(alias) => link.alias = alias,
                LinkAttribute::Group(group) => link.group = group,
                LinkAttribute::Controller(0) => {}
                LinkAttribute::Controller(index) => link.controller = Some(index),
                LinkAttribute::Link(0) => {}
                LinkAttribute::Link(index) => link.below = Some(index),
                LinkAttribute::LinkNetNsId(_) => is_elsewhere = true,
                // IFF_LOWER_UP is not set while the interface is down, even if there is a carrier.
                LinkAttribute::Carrier(carrier) => link.has_carrier = carrier != 0,
                LinkAttribute::LinkInfo(info) => {
                    link.is_bridge = info.contains(&LinkInfo::Kind(InfoKind::Bridge));
                    link.is_tap = info.contains(&LinkInfo::Kind(InfoKind::Tun));
                }
                _ => {}
            }
        }
        // Then the index is one of another network namespace.
        if is_elsewhere {
            link.below = None;
        }
        link
    }
}

impl InUse {
    fn from_message(message: &RouteNetlinkMessage) -> Option<Self> {
        match message {
            RouteNetlinkMessage::NewAddress(message) => {
                let address = message.attributes.iter().find_map(|a| match a {
                    AddressAttribute::Address(IpAddr::V4(address)) => Some(*address),
                    _ => None,
                })?;
                Some(InUse {
                    address,
                    prefix: message.header.prefix_len,
                    index: Some(message.header.index),
                })
            }
            RouteNetlinkMessage::NewRoute(message)
                if message.header.destination_prefix_length > 0 =>
            {
                let address = message.attributes.iter().find_map(|a| match a {
                    RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(*address),
                    _ => None,
                })?;
                let index = message.attributes.iter().find_map(|a| match a {
                    RouteAttribute::Oif(index) => Some(*index),
                    _ => None,
                });
                Some(InUse {
                    address,
                    prefix: message.header.destination_prefix_length,
                    index,
                })
            }
            _ => None,
        }
    }
}
