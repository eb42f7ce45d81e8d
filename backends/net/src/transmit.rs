//! From the guest to the TAP device.

use std::io;

use bulkhead_daemon::{Queue, RingError, iovec};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use tap::Tap;

/// Sends what the driver has made available. Each chain is a `virtio_net_hdr_v1` and a frame. The kernel checks both,
/// and what it refuses is lost, as on any network.
pub(crate) fn transmit(tap: &Tap, queue: &mut Queue<'_>) -> Result<(), RingError> {
    while let Some(chain) = queue.pop()? {
        let frame = chain.readable();
        let slices = frame.slices(queue.memory(), 0, frame.length())?;
        let sent = iovec::write(tap, &slices);
        drop(slices);
        queue.complete(chain, 0)?;
        if sent.is_err_and(|e| is_gone(&e)) {
            return Err(gone(tap));
        }
    }
    Ok(())
}

/// Whether the interface was removed, found out without reading or writing. A queue that is not attached looks removed,
/// too.
pub(crate) fn is_removed(tap: &Tap) -> bool {
    let mut states = [PollFd::new(tap, PollFlags::empty())];
    let now = Timespec::default();
    poll(&mut states, Some(&now)).is_ok()
        && states
            .iter()
            .any(|state| state.revents().intersects(PollFlags::ERR | PollFlags::HUP))
}

/// Whether the interface was removed from under its descriptor.
pub(crate) fn is_gone(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::BADFD)
}

pub(crate) fn gone(tap: &Tap) -> RingError {
    RingError::Device(format!("TAP device {} was removed", tap.name()))
}
