//! What all queues of the device share.

use std::sync::Arc;

use crate::execute::Disk;
use crate::pool::Pool;
use crate::request::SERIAL_LENGTH;

/// The disk, the threads that serve it, and its serial number.
pub(crate) struct Shared {
    pub(crate) disk: Arc<Disk>,
    pub(crate) pool: Pool,
    pub(crate) serial: [u8; SERIAL_LENGTH],
}
