//! The errors of a backend and of a ring.

use std::io;

use bulkhead_process::confine::ConfineError;
use bulkhead_process::listen::ListenError;

/// Why a backend could not serve.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket on the command line cannot be used.
    #[error("{0}")]
    Socket(String, #[source] Option<io::Error>),
    /// Nobody can connect to the socket.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The process could not be confined.
    #[error("cannot confine the process")]
    Confine(#[from] ConfineError),
    /// The frontend broke the protocol; the connection is closed.
    #[error("the vhost-user frontend: {0}")]
    Frontend(String),
    /// The device failed, or could not make its data durable.
    #[error("cannot finish")]
    Device(#[source] io::Error),
    /// A system call of the event loop failed.
    #[error("cannot serve: {0}")]
    System(&'static str, #[source] io::Error),
}

impl Error {
    pub(crate) fn system(what: &'static str) -> impl FnOnce(rustix::io::Errno) -> Self {
        move |error| Self::System(what, error.into())
    }
}

/// Why a ring is broken. It is not served until the frontend sets it up again. (virtio 1.2, 2.7 "Split Virtqueues")
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RingError {
    /// The driver did not accept VIRTIO_F_VERSION_1.
    #[error("the driver is older than virtio 1.0")]
    Legacy,
    /// The size is no power of two, or a part of the ring is not in guest memory.
    #[error("its descriptor table, available or used ring is not in guest memory")]
    Addresses,
    /// The index of the available ring moved further than the ring is long.
    #[error("the available index makes no sense")]
    AvailableIndex,
    /// A descriptor index is not in its table.
    #[error("descriptor {0} is not in the table")]
    DescriptorIndex(u16),
    /// A chain has more descriptors than a device accepts, as one that goes in circles does.
    #[error("a descriptor chain is too long or a loop")]
    ChainTooLong,
    /// A chain starts with nothing at all, or a descriptor has no length.
    #[error("a descriptor is empty")]
    EmptyDescriptor,
    /// A descriptor that the device may read follows one that it may write.
    #[error("a readable descriptor follows a writable one")]
    DescriptorOrder,
    /// An indirect table is nested, continued, or of a wrong size.
    #[error("an indirect descriptor table is malformed")]
    Indirect,
    /// A buffer, or part of the ring, is not in guest memory.
    #[error("an address is outside guest memory")]
    OutsideMemory,
    /// The frontend has taken away memory that it shares.
    #[error("the frontend has truncated memory that it shares")]
    MemoryLost,
    /// The shared in-flight area does not fit the ring.
    #[error("the in-flight area does not fit the ring")]
    Inflight,
    /// The device's own reason.
    #[error("{0}")]
    Device(String),
}
