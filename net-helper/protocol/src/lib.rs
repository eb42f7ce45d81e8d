//! `bulkhead-net-protocol`: the messages between `bulkhead-net-helper` and its clients, and a small client.
//!
//! A client connects to the helper's Unix socket (`SOCK_SEQPACKET`, so one packet is one message), asks for a TAP
//! device on a network and gets back what it was given, with one open TAP file per queue (`SCM_RIGHTS`). **The
//! connection is the lease**: when it closes, for whatever reason, the helper takes the TAP device back.
//!
//! Whoever needs the helper to stay without needing a TAP device, as the supervisor of a guest does while the guest
//! reboots, has a **hold**: a connection, too. A helper that is to end when idle ends when the last lease and the last
//! hold are gone, whoever started it.
//!
//! A message is JSON of at most [`MAX_MESSAGE`] bytes, with the protocol's [`VERSION`]. Nothing unknown is accepted in
//! it.
//!
//! ```no_run
//! use bulkhead_net_protocol::{Client, TapRequest, default_socket_path};
//!
//! let lease = Client::connect(&default_socket_path())?.request_tap(&TapRequest::on("default"))?;
//! println!("{} on {}", lease.info.mac, lease.info.interface);
//! # Ok::<(), bulkhead_net_protocol::Error>(())
//! ```
//!
//! It may touch the one socket it is given. It must not depend on any other part of Bulkhead but the type of MAC addresses, nor
//! know how the helper does what it is asked.

#![forbid(unsafe_code)]

mod channel;
mod client;
mod error;
mod message;
mod path;

pub use channel::{Channel, Packet};
pub use client::{Client, Connection, Hold, Lease, PendingHold};
pub use error::{Error, ErrorKind};
pub use message::{
    Refusal, RefusalKind, Reply, Request, Subnet, TapInfo, TapRequest, decode, encode,
};
pub use path::default_socket_path;

/// The protocol's version. Each message carries it; a peer refuses any other.
pub const VERSION: u32 = 1;

/// The longest message, in bytes.
pub const MAX_MESSAGE: usize = 4096;

/// The most queues a TAP device can be asked for.
pub const MAX_QUEUES: u16 = 16;
