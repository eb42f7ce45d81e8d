//! One queue of a TAP interface.

use std::ffi::c_int;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use bitflags::bitflags;
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::request::{self, IfReq};
use crate::{Error, InterfaceName};

const TUN: &str = "/dev/net/tun";

/// Bytes of the header before each frame once it holds `num_buffers`: `struct virtio_net_hdr_v1`.
pub const VNET_HDR_LEN: usize = 12;

bitflags! {
    /// How an interface is attached to.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Options: u16 {
        /// A `virtio_net_hdr` precedes each frame.
        const VNET_HDR = libc::IFF_VNET_HDR as u16;
        /// The interface can have several queues, each a [`Tap`] of its own. All of them have to say so.
        const MULTI_QUEUE = libc::IFF_MULTI_QUEUE as u16;
        /// The interface must not exist yet.
        const EXCLUSIVE = libc::IFF_TUN_EXCL as u16;
    }

    /// What the reader of a TAP accepts unfinished, so that the kernel need not finish it (`TUN_F_…`).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Offloads: u32 {
        /// Frames whose checksum is still to be filled in. The others need this one.
        const CSUM = libc::TUN_F_CSUM;
        /// TCP over IPv4 of up to 64 KiB, still to be cut into segments.
        const TSO4 = libc::TUN_F_TSO4;
        /// The same over IPv6.
        const TSO6 = libc::TUN_F_TSO6;
        /// Such TCP with congestion notification in it.
        const TSO_ECN = libc::TUN_F_TSO_ECN;
        /// UDP over IPv4 still to be cut.
        const USO4 = libc::TUN_F_USO4;
        /// The same over IPv6.
        const USO6 = libc::TUN_F_USO6;
    }
}

/// One queue of a TAP interface: a file of Ethernet frames, one per read or write. Non-blocking.
///
/// An interface that was not made persistent goes away with its last queue.
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
    name: InterfaceName,
    options: Options,
}

impl Tap {
    /// Attaches to the interface of that name, and creates it if there is none.
    ///
    /// Needs CAP_NET_ADMIN unless the interface exists, is persistent and belongs to the caller.
    pub fn open(name: &InterfaceName, options: Options) -> Result<Self, Error> {
        Self::attach(name.bytes(), options, name)
    }

    /// Creates an interface named `prefix0`, `prefix1`, …: the first that is free.
    pub fn create(prefix: &InterfaceName, options: Options) -> Result<Self, Error> {
        Self::attach(
            InterfaceName::pattern(prefix)?,
            options | Options::EXCLUSIVE,
            prefix,
        )
    }

    /// Takes a file that is already attached to a TAP interface, such as one received from another process.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, Error> {
        let mut req = IfReq::new([0; _]);
        request::get_iff(&fd, &mut req).map_err(|e| match e {
            rustix::io::Errno::NOTTY | rustix::io::Errno::BADFD => {
                Error::mismatch("file descriptor is not an attached TAP device".into())
            }
            e => Error::io("cannot ask a file descriptor for its TAP interface", e),
        })?;
        let name = InterfaceName::from_kernel(&req.name)?;
        let flags = u16::from_ne_bytes(req.get(0));
        if flags & libc::IFF_TAP as u16 == 0 {
            return Err(Error::mismatch(format!(
                "{name} is a TUN device, not a TAP device"
            )));
        }
        if flags & libc::IFF_NO_PI as u16 == 0 {
            return Err(Error::mismatch(format!(
                "{name} was opened without IFF_NO_PI"
            )));
        }
        let fl =
            rustix::fs::fcntl_getfl(&fd).map_err(|e| Error::io(format!("{name}: fcntl"), e))?;
        rustix::fs::fcntl_setfl(&fd, fl | OFlags::NONBLOCK)
            .map_err(|e| Error::io(format!("{name}: fcntl"), e))?;
        let options = Options::from_bits_truncate(flags) - Options::EXCLUSIVE;
        Ok(Tap { fd, name, options })
    }

    fn attach(
        name: [u8; libc::IFNAMSIZ],
        options: Options,
        asked: &InterfaceName,
    ) -> Result<Self, Error> {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::open(TUN, flags, Mode::empty())
            .map_err(|e| Error::io(format!("cannot open {TUN}"), e))?;
        let mut req = IfReq::new(name);
        let bits = libc::IFF_TAP as u16 | libc::IFF_NO_PI as u16 | options.bits();
        req.set(0, bits.to_ne_bytes());
        request::set_iff(&fd, &mut req).map_err(|e| match e {
            rustix::io::Errno::INVAL => Error::mismatch(format!(
                "{asked} is not a TAP device, or not one with the number of queues asked for"
            )),
            e => Error::io(format!("cannot attach to TAP device {asked}"), e),
        })?;
        let name = InterfaceName::from_kernel(&req.name)?;
        Ok(Tap {
            fd,
            name,
            options: options - Options::EXCLUSIVE,
        })
    }

    /// One more queue of the same interface, which must have been opened with [`Options::MULTI_QUEUE`].
    pub fn another_queue(&self) -> Result<Self, Error> {
        if !self.options.contains(Options::MULTI_QUEUE) {
            return Err(Error::mismatch(format!(
                "{} was not opened for several queues",
                self.name
            )));
        }
        Self::open(&self.name, self.options)
    }

    /// The interface's name.
    pub fn name(&self) -> &InterfaceName {
        &self.name
    }

    /// How the interface was attached to.
    pub fn options(&self) -> Options {
        self.options
    }

    /// Whether this kernel's TAP devices can have several queues.
    pub fn supports_multi_queue(&self) -> bool {
        request::get_features(&self.fd).is_ok_and(|bits| bits & libc::IFF_MULTI_QUEUE as u32 != 0)
    }

    /// Sets the length of the header before each frame, for the whole interface: 10, or [`VNET_HDR_LEN`] with
    /// `num_buffers`.
    pub fn set_vnet_hdr_len(&self, bytes: usize) -> Result<(), Error> {
        let bytes = c_int::try_from(bytes).unwrap_or(c_int::MAX);
        self.done(
            request::set_vnet_hdr_len(&self.fd, bytes),
            "set the header length of",
        )
    }

    /// Makes that header little-endian, as virtio 1 has it, whatever the machine's byte order.
    pub fn set_vnet_little_endian(&self) -> Result<(), Error> {
        self.done(
            request::set_vnet_le(&self.fd, 1),
            "set the header byte order of",
        )
    }

    /// Says what the reader accepts unfinished. Replaces what was said before; applies to the whole interface.
    pub fn set_offloads(&self, offloads: Offloads) -> Result<(), Error> {
        let bits = usize::try_from(offloads.bits()).unwrap_or(0);
        self.done(request::set_offload(&self.fd, bits), "set the offloads of")
    }

    /// Whether the kernel accepts these offloads. Leaves none set.
    pub fn supports_offloads(&self, offloads: Offloads) -> bool {
        let accepted = self.set_offloads(offloads).is_ok();
        let cleared = self.set_offloads(Offloads::empty()).is_ok();
        accepted && cleared
    }

    /// Attaches or detaches this queue: the kernel steers frames only to attached ones.
    pub fn set_queue_enabled(&self, enabled: bool) -> Result<(), Error> {
        let mut req = IfReq::new([0; _]);
        let flag = if enabled {
            libc::IFF_ATTACH_QUEUE
        } else {
            libc::IFF_DETACH_QUEUE
        };
        req.set(0, (flag as u16).to_ne_bytes());
        self.done(
            request::set_queue(&self.fd, &mut req),
            "enable or disable a queue of",
        )
    }

    /// Whether the interface outlives its last queue.
    pub fn set_persistent(&self, persistent: bool) -> Result<(), Error> {
        self.done(
            request::set_persist(&self.fd, usize::from(persistent)),
            "set the persistence of",
        )
    }

    /// The hardware address of the interface: the host's end, not the guest's.
    pub fn mac(&self) -> Result<[u8; 6], Error> {
        let mut req = IfReq::new(self.name.bytes());
        self.done(
            request::get_hwaddr(&self.fd, &mut req),
            "read the hardware address of",
        )?;
        Ok(req.get(2))
    }

    /// Sets the hardware address of the interface.
    pub fn set_mac(&self, mac: [u8; 6]) -> Result<(), Error> {
        let mut req = IfReq::new(self.name.bytes());
        req.set(0, libc::ARPHRD_ETHER.to_ne_bytes());
        req.set(2, mac);
        self.done(
            request::set_hwaddr(&self.fd, &mut req),
            "set the hardware address of",
        )
    }

    /// The interface's MTU: bytes of payload in a frame.
    pub fn mtu(&self) -> Result<u32, Error> {
        let mut req = IfReq::new(self.name.bytes());
        let socket = self.socket()?;
        self.done(request::get_mtu(&socket, &mut req), "read the MTU of")?;
        Ok(u32::from_ne_bytes(req.get(0)))
    }

    /// Sets the interface's MTU.
    pub fn set_mtu(&self, mtu: u32) -> Result<(), Error> {
        let mut req = IfReq::new(self.name.bytes());
        req.set(0, mtu.to_ne_bytes());
        let socket = self.socket()?;
        self.done(request::set_mtu(&socket, &mut req), "set the MTU of")
    }

    /// A socket to ask about interfaces by name. Any family does, so the one that needs least.
    fn socket(&self) -> Result<OwnedFd, Error> {
        rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(|e| Error::io(format!("{}: cannot open a socket", self.name), e))
    }

    fn done<T>(&self, result: rustix::io::Result<T>, what: &str) -> Result<T, Error> {
        result.map_err(|e| Error::io(format!("cannot {what} TAP device {}", self.name), e))
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<Tap> for OwnedFd {
    fn from(tap: Tap) -> OwnedFd {
        tap.fd
    }
}
