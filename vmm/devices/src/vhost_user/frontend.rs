//! The frontend as the transport and the machine see it.

use std::io;
use std::sync::Arc;

use vm_memory::GuestMemoryMmap;

use super::config::{FrontendConfig, Host};
use super::device::Device;
use super::error::FrontendError;
use super::reconnect;
use crate::hypervisor::MsiVector;
use crate::lifecycle::Lifecycle;
use crate::virtio::{ActiveQueue, DeviceEvents, VirtioDevice};

/// A virtio device that a vhost-user backend implements.
pub struct Frontend {
    device: Arc<Device>,
}

impl Frontend {
    /// Connects to a backend and negotiates. It fails at once when no backend listens, and waits for answers for a
    /// limited time.
    ///
    /// # Errors
    /// When no backend listens at the socket, the peer does not speak vhost-user, or it does not offer what `config`
    /// asks for.
    pub fn connect(
        config: FrontendConfig,
        memory: GuestMemoryMmap,
        host: Host,
    ) -> Result<Arc<Self>, FrontendError> {
        let socket = config.socket.clone();
        let device = Device::connect(config, memory, host)
            .map_err(|fault| FrontendError { socket, fault })?;
        let device = Arc::new(device);
        Ok(Arc::new(Self { device }))
    }
}

impl Lifecycle for Frontend {
    /// Starts the reconnect thread. Until then nothing that the driver asks for is done.
    fn activate(&self) -> io::Result<()> {
        reconnect::start(&self.device)
    }

    fn reset(&self) {
        self.device.reset();
    }

    /// The backend completes what it has taken from the vrings, and takes no more. A backend that does not answer in
    /// time loses its connection, and with it guest RAM.
    fn pause(&self) {
        self.device.pause();
    }

    fn resume(&self) {
        self.device.resume();
    }

    /// Ends the connection and the thread. Nothing is reported any more.
    fn remove(&self) {
        self.device.close();
    }
}

impl Drop for Frontend {
    fn drop(&mut self) {
        self.device.close();
    }
}

impl VirtioDevice for Frontend {
    fn device_type(&self) -> u16 {
        self.device.device_type()
    }

    fn features(&self) -> u64 {
        self.device.features()
    }

    fn queue_max_sizes(&self) -> &[u16] {
        self.device.queue_max_sizes()
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.device.read_config(offset, data);
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        self.device.write_config(offset, data);
    }

    fn attach(&self, events: Arc<dyn DeviceEvents>) {
        self.device.attach(events);
    }

    fn activate(&self, features: u64, queues: Vec<ActiveQueue>) {
        self.device.activate(features, queues);
    }

    fn set_call(&self, index: u16, call: Arc<dyn MsiVector>) {
        self.device.set_call(index, call);
    }

    fn notify(&self, index: u16) {
        self.device.notify(index);
    }

    fn reset(&self) {
        self.device.reset();
    }

    fn is_stopped(&self) -> bool {
        self.device.is_stopped()
    }
}
