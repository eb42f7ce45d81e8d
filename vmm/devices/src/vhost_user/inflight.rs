//! Which requests are in flight, kept for the backend that comes after one that died.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use vhost::vhost_user::message::{VhostUserInflight, VhostUserProtocolFeatures};

use super::backend::Backend;
use super::driver_setup::DriverSetup;
use super::error::Result;
use super::inflight_tracker::InflightTracker;
use crate::virtio::ActiveQueue;

/// The records of requests in flight. Either the backend keeps them, or the monitor does.
#[derive(Default)]
pub(super) struct Inflight {
    /// The backend's records (VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD).
    area: Option<Area>,
    /// The monitor's, for a backend without that feature.
    pub(super) tracker: Option<InflightTracker>,
}

/// The memory in which a backend keeps its records.
struct Area {
    description: VhostUserInflight,
    fd: OwnedFd,
}

impl Inflight {
    /// Whether a backend keeps the records.
    pub(super) fn is_recorded_by_backend(&self) -> bool {
        self.area.is_some()
    }

    /// The eventfd that the backend signals when it has used buffers of `queue`.
    pub(super) fn call(&self, queue: &ActiveQueue) -> RawFd {
        let relay = |tracker: &InflightTracker| tracker.relay(queue.index);
        let relay = self.tracker.as_ref().and_then(relay);
        relay.unwrap_or_else(|| queue.call.eventfd().as_raw_fd())
    }

    /// Gives the backend the records of the one before it, or has it allocate memory for new ones.
    pub(super) fn share(&mut self, backend: &Backend, setup: &DriverSetup) -> Result<()> {
        if !backend.has(VhostUserProtocolFeatures::INFLIGHT_SHMFD) || setup.queues.is_empty() {
            return Ok(());
        }
        if self.area.is_none() {
            let counts = setup
                .queues
                .iter()
                .map(|queue| queue.index.saturating_add(1));
            let sizes = setup.queues.iter().map(|queue| queue.size);
            let (count, size) = (counts.max().unwrap_or(1), sizes.max().unwrap_or(1));
            let (description, fd) = backend.connection.inflight_fd(count, size)?;
            self.area = Some(Area { description, fd });
        }
        match &self.area {
            Some(area) => backend
                .connection
                .set_inflight_fd(&area.description, &area.fd),
            None => Ok(()),
        }
    }
}
