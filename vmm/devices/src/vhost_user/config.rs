//! What a frontend is made of, and what it reports.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use super::device_type::DeviceOptions;
use super::error::FrontendError;

/// The backend to connect to, and the device it is to be.
#[derive(Clone, Debug)]
pub struct FrontendConfig {
    /// The backend's socket.
    pub socket: PathBuf,
    /// The virtio device type, see [`super::device_type()`].
    pub device_type: u16,
    /// The number of queues. `None`: the usual number for the type.
    pub num_queues: Option<u16>,
    /// The maximum size of each queue, a power of two. The last one is that of all queues after it, too.
    pub queue_sizes: Vec<u16>,
    /// Options that only some types have.
    pub options: DeviceOptions,
}

/// What happens to a backend while the guest runs.
#[derive(Debug)]
pub enum BackendEvent<'a> {
    /// The connection ended. The frontend reconnects until there is a backend again.
    Lost,
    /// A backend was there and could not be used. Each different reason is reported once.
    Unusable(&'a FrontendError),
    /// A backend works again.
    Back,
}

/// Connects to the backend's socket, without waiting. It is called again after each loss.
pub type Connector = Box<dyn Fn() -> io::Result<UnixStream> + Send + Sync>;

/// Called with each [`BackendEvent`] and the socket it is about.
pub type Observer = Box<dyn Fn(&Path, BackendEvent<'_>) + Send + Sync>;

/// What a frontend needs of its process.
pub struct Host {
    /// See [`Connector`].
    pub connector: Connector,
    /// See [`Observer`].
    pub observer: Observer,
    /// What the frontend's thread does first, for example confine itself.
    pub enter_thread: Box<dyn Fn() + Send + Sync>,
}
