//! What the device needs of the kernel once it serves.

use bulkhead_daemon::Confinement;

/// Requests on TAP descriptors that are open: what the guest accepts unfinished, and which queues it uses.
const IOCTLS: &[u64] = &[libc::TUNSETOFFLOAD, libc::TUNSETQUEUE];

/// Frames go by readv(2) and writev(2), which every program has. No path and no capability.
pub(crate) fn confinement() -> Confinement {
    Confinement::new().allow_ioctls(IOCTLS)
}
