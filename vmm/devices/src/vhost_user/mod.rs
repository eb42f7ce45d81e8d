//! The one vhost-user frontend: any virtio device, by type number, in another process behind a Unix socket.
//!
//! The backend gets guest RAM as files, the addresses of the vrings in it, and for each vring two eventfds: the kick,
//! which is the guest's doorbell, and the call, which is the guest's interrupt. From then on guest and backend talk to
//! each other without the monitor.
//!
//! A backend may die at any moment. The frontend then reconnects to the same socket and gives the next backend
//! everything, including the records of requests in flight. The driver sees a pause.
//!
//! vCPU threads call [`Frontend`], which keeps what the driver wants in a `Device` and returns at once. The
//! `ReconnectThread` alone talks to the backend.

mod backend;
mod backend_channel;
mod config;
mod config_space;
mod connection;
mod device;
mod device_type;
mod driver_setup;
mod error;
mod frontend;
mod inflight;
mod inflight_tracker;
mod memory;
mod probe;
mod reconnect;
mod requests;
mod signal;
mod vrings;

pub use config::{BackendEvent, Connector, FrontendConfig, Host, Observer};
pub use connection::connect;
pub use device_type::{DeviceOptions, TYPE_BLOCK, TYPE_FS, TYPE_NET, device_type, usual_queues};
pub use error::{Fault, FrontendError};
pub use frontend::Frontend;
