//! `tap`: Linux TAP devices, usable on its own.
//!
//! A [`Tap`] is one queue of a TAP interface: an open file from which Ethernet frames are read, and to which they are
//! written. Each frame may be preceded by a `struct virtio_net_hdr` (virtio 1.3, section 5.1.6), so that
//! checksums and segmentation can be left to whoever can do them best.
//!
//! It may touch `/dev/net/tun` and the interface it is given. It must not depend on any other part of Bulkhead, on
//! netlink, or on virtqueues: bridges, addresses and rings are its callers' business.
//!
//! ```no_run
//! use tap::{InterfaceName, Offloads, Options, Tap};
//!
//! let tap = Tap::open(&InterfaceName::new("tap0")?, Options::VNET_HDR)?;
//! tap.set_vnet_hdr_len(tap::VNET_HDR_LEN)?;
//! tap.set_offloads(Offloads::CSUM | Offloads::TSO4)?;
//! # Ok::<(), tap::Error>(())
//! ```
#![deny(unsafe_op_in_unsafe_fn)]

mod device;
mod error;
mod name;
mod request;

pub use device::{Offloads, Options, Tap, VNET_HDR_LEN};
pub use error::{Error, ErrorKind};
pub use name::InterfaceName;

/// The `ioctl` requests this crate makes on a TAP's file or on a socket, for callers that confine themselves to a list.
///
/// All of them work on a file that is already open; none of them opens one.
pub const IOCTLS: &[u64] = &[
    libc::TUNSETIFF,
    libc::TUNGETIFF,
    libc::TUNGETFEATURES,
    libc::TUNSETVNETHDRSZ,
    libc::TUNSETVNETLE,
    libc::TUNSETOFFLOAD,
    libc::TUNSETQUEUE,
    libc::TUNSETPERSIST,
    libc::SIOCGIFHWADDR,
    libc::SIOCSIFHWADDR,
    libc::SIOCGIFMTU,
    libc::SIOCSIFMTU,
];
