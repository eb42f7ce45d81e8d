//! What a driver has set up when it sets DRIVER_OK.

use crate::virtio::ActiveQueue;

/// The features the driver accepted and the queues it enabled.
#[derive(Clone)]
pub(super) struct DriverSetup {
    pub(super) features: u64,
    pub(super) queues: Vec<ActiveQueue>,
}
