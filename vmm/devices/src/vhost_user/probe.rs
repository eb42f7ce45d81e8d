//! Connects to the first backend, and finds out the queue sizes it accepts.

use std::thread;
use std::time::Duration;

use vhost::vhost_user::message::FrontendReq;

use super::backend::Backend;
use super::error::{Fault, Result};

const ATTEMPTS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(20);
/// Smaller queue sizes are not tried.
const MIN_QUEUE_SIZE: u16 = 16;

/// Connects. A server binds its socket before it listens, so a refused connection is tried again for a moment.
pub(super) fn connect(establish: &dyn Fn() -> Result<Backend>) -> Result<Backend> {
    for _ in 0..ATTEMPTS {
        match establish() {
            Err(Fault::NobodyListens) => thread::sleep(PAUSE),
            result => return result,
        }
    }
    establish()
}

/// Reduces `sizes` until the backend accepts them, one for each queue. vhost-user has no request for the maximum, so
/// sizes are tried. A backend that refuses one often ends the connection or dies: better now than when there is a
/// driver.
pub(super) fn find_queue_sizes(
    mut backend: Backend,
    establish: &dyn Fn() -> Result<Backend>,
    sizes: &mut Vec<u16>,
) -> Result<Backend> {
    let wanted = sizes.clone();
    while let Err(fault) = backend.try_queue_sizes(sizes) {
        match fault {
            Fault::Refused(FrontendReq::SET_VRING_NUM) | Fault::Closed => {}
            fault => return Err(fault),
        }
        drop(backend);
        backend = match connect(establish) {
            Ok(backend) => backend,
            // It died of the size, and nobody has started it again.
            Err(_) => return Err(Fault::QueuesTooLong),
        };
        let longest = sizes.iter().copied().max().unwrap_or_default();
        if longest <= MIN_QUEUE_SIZE {
            // The size is not what the backend refuses. It may still accept the queues when a driver has set them up.
            *sizes = wanted;
            return Ok(backend);
        }
        for size in sizes.iter_mut() {
            *size = (*size).min(longest / 2);
        }
    }
    Ok(backend)
}
