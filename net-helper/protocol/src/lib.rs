//! `bulkhead-net-protocol`: the messages between `bulkhead-net-helper` and its clients, and a client.
//!
//! A client connects to the helper's Unix socket (`SOCK_SEQPACKET`, so that a packet is a message) and requests a TAP
//! device on a network. The reply describes the device and comes with one open file for each queue (`SCM_RIGHTS`).
//! **The connection is the lease**: when it closes, for whatever reason, the helper removes the TAP device.
//!
//! A connection can also be a **hold**, for a client that needs the helper and no TAP device of its own: `bulkhead run`
//! has one, from start to end, over reboots of the guest. A helper with `--exit-idle` ends when the last lease and the
//! last hold are gone, whoever has started it.
//!
//! On a connection that is neither, a client can ask which addresses a guest has by DHCP.
//!
//! A message is JSON of at most [`MAX_MESSAGE`] bytes, with the protocol's [`VERSION`]. A message with an unknown field
//! is refused.
//!
//! ```no_run
//! use bulkhead_net_protocol::{Client, TapRequest, default_socket_path};
//!
//! let lease = Client::connect(&default_socket_path())?.request_tap(&TapRequest::on("default"))?;
//! println!("{} on {}", lease.info.mac, lease.info.interface);
//! # Ok::<(), bulkhead_net_protocol::Error>(())
//! ```
//!
//! It may touch the one socket that it is given. It must not depend on any other part of Bulkhead but the type of MAC
//! addresses, nor on how the helper works.

#![forbid(unsafe_code)]

mod channel;
mod client;
mod error;
mod message;
mod path;
mod tap_mac;

pub use channel::{Channel, Packet};
pub use client::{Client, Connection, Hold, Lease, PendingHold};
pub use error::{Error, ErrorKind};
pub use message::{
    AddressRequest, Addresses, Refusal, RefusalKind, Reply, Request, Subnet, TapInfo, TapRequest,
    decode, encode,
};
pub use path::{default_socket_path, start_command};
pub use tap_mac::tap_mac;

/// The protocol's version. Each message contains it; a peer refuses any other.
pub const VERSION: u32 = 1;

/// The longest message, in bytes.
pub const MAX_MESSAGE: usize = 4096;

/// The most queues that a TAP device can have.
pub const MAX_QUEUES: u16 = 16;

/// The most addresses of one guest in a reply.
pub const MAX_ADDRESSES: usize = 16;
