//! The one vhost-user frontend: any virtio device, by type number, in another process behind a Unix socket.
//!
//! The backend gets guest RAM as files, the queues' places in it, and for each queue two eventfds: the guest's doorbell and
//! the guest's interrupt. From then on guest and backend talk to each other, and this process sleeps.
//!
//! A backend may die at any moment. The frontend then waits for another one at the same socket and hands it everything,
//! including the former one's notes on requests in flight. The driver sees a pause.

mod backend_channel;
mod config_space;
mod connection;
mod device_type;
mod error;
mod handshake;
mod memory;
mod requests;
mod session;
mod unanswered;
mod vrings;
mod worker;

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vm_memory::GuestMemoryMmap;

use crate::hypervisor::MsiVector;
use crate::virtio::{ActiveQueue, DeviceEvents, VirtioDevice};

pub use connection::connect;
pub use device_type::{DeviceOptions, TYPE_BLOCK, TYPE_FS, TYPE_NET, device_type, usual_queues};
pub use error::{Fault, FrontendError};
use session::Session;

/// What to connect to, and as what.
#[derive(Clone, Debug)]
pub struct FrontendConfig {
    /// The backend's socket.
    pub socket: PathBuf,
    /// The virtio device type, see [`device_type()`].
    pub device_type: u16,
    /// How many queues; without, what is usual for the type.
    pub num_queues: Option<u16>,
    /// The longest each queue may be: powers of two. The last one is for the queues after it, too.
    pub queue_sizes: Vec<u16>,
    /// What matters for some types only.
    pub options: DeviceOptions,
}

/// What happens to a backend while the guest runs.
#[derive(Debug)]
pub enum BackendEvent<'a> {
    /// The backend went away; others at the same socket will be tried from now on.
    Lost,
    /// Those that were tried could not be used. It is said once for each different reason.
    Unusable(&'a FrontendError),
    /// A backend is back at work.
    Back,
}

/// Connects to the backend's socket, without waiting. Called again after each loss.
pub type Connector = Box<dyn Fn() -> io::Result<UnixStream> + Send + Sync>;

/// Told of [`BackendEvent`]s, with the socket they are about.
pub type Observer = Box<dyn Fn(&Path, BackendEvent<'_>) + Send + Sync>;

/// A virtio device whose other half is a vhost-user backend.
pub struct Frontend {
    session: Arc<Session>,
}

impl Frontend {
    /// Connects to a backend and gets to know it. It fails at once when there is none; it waits for an answer, but not for ever.
    ///
    /// # Errors
    /// When there is no backend at the socket, it does not speak vhost-user, or it has not what is asked for.
    pub fn connect(
        config: FrontendConfig,
        memory: GuestMemoryMmap,
        connector: Connector,
        observer: Observer,
    ) -> Result<Arc<Self>, FrontendError> {
        let socket = config.socket.clone();
        let session = Session::connect(config, memory, connector, observer)
            .map_err(|fault| FrontendError { socket, fault })?;
        let session = Arc::new(session);
        Ok(Arc::new(Self { session }))
    }

    /// Starts the thread that deals with the backend. Until it runs, nothing that the driver wants is done. `enter` is what the thread
    /// does first.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn supervise(&self, enter: impl FnOnce() + Send + 'static) -> io::Result<()> {
        worker::start(&self.session, enter)
    }

    /// Ends the dealings with the backend. Nothing is reported any more.
    pub fn close(&self) {
        self.session.close();
    }
}

impl Drop for Frontend {
    fn drop(&mut self) {
        self.session.close();
    }
}

impl VirtioDevice for Frontend {
    fn device_type(&self) -> u16 {
        self.session.device_type()
    }

    fn features(&self) -> u64 {
        self.session.features()
    }

    fn queue_max_sizes(&self) -> &[u16] {
        self.session.queue_max_sizes()
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.session.read_config(offset, data);
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        self.session.write_config(offset, data);
    }

    fn attach(&self, events: Arc<dyn DeviceEvents>) {
        self.session.attach(events);
    }

    fn activate(&self, features: u64, queues: Vec<ActiveQueue>) {
        self.session.activate(features, queues);
    }

    fn set_call(&self, index: u16, call: Arc<dyn MsiVector>) {
        self.session.set_call(index, call);
    }

    fn notify(&self, index: u16) {
        self.session.notify(index);
    }

    fn reset(&self) {
        self.session.reset();
    }

    fn is_stopped(&self) -> bool {
        self.session.is_stopped()
    }
}
