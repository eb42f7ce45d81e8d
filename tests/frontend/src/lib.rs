//! `bulkhead-test-frontend`: the other side of a vhost-user backend, for the tests and benches of every backend.
//!
//! A [`Guest`] is the frontend and the driver in one: it connects, negotiates, shares its memory and starts rings, and
//! then offers descriptor chains and waits for the used ring. [`program`] starts the backend's program as a service
//! manager does, waits for it and looks at what it uses. [`descriptors`] has file descriptors that give a program
//! trouble.
//!
//! ```no_run
//! use bulkhead_test_frontend::{Buffer, Guest, Shape};
//!
//! let shape = Shape { rings: 1, ring_size: 128, memory: 32 << 20 };
//! let mut guest = Guest::connect("/run/device.sock".as_ref(), shape);
//! guest.start();
//! let at = guest.free_memory();
//! guest.put(at, b"a request");
//! let head = guest.post(0, &[Buffer { address: at, length: 9, writable: false }]);
//! guest.kick(0);
//! assert_eq!(guest.wait_used(0, 1), [(u32::from(head), 0)]);
//! ```
//!
//! Everything here panics when something is not as a test expects. What is special to a device type (the requests of
//! virtio-blk, the frames of virtio-net) is in that backend's tests.
//!
//! It may touch the programs that it starts and sockets to them. It must not depend on a backend: its only view of one
//! is the protocol.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on has failed"
)]

pub mod descriptors;
mod guest;
pub mod program;
mod ring;

use std::time::Duration;

pub use descriptors::readable;
pub use guest::{EVENT_IDX, Guest, PROTOCOL_FEATURES, Shape, VERSION_1, guest_memory};
pub use ring::{Buffer, Ring};

/// Longer than anything takes that a test waits for, on the slowest machine.
pub const PATIENCE: Duration = Duration::from_secs(20);
