//! What devices need of a hypervisor: interrupts and doorbells that are eventfds.

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

/// One message-signalled interrupt, which an eventfd triggers without the monitor.
pub trait MsiVector: Send + Sync {
    /// The eventfd by which a backend raises the interrupt while a route is set. It stays the same for the vector's
    /// whole life, so that a backend can keep it. While no route is set, signals stay in its counter, and setting a
    /// route delivers them.
    ///
    /// A backend can fill it and make it block, so the monitor neither reads nor writes it.
    fn eventfd(&self) -> &EventFd;

    /// Raises the interrupt, as a signal of [`Self::eventfd`] does. It never waits.
    fn signal(&self);

    /// Whether a signal is pending because no route is set. It never waits.
    fn is_pending(&self) -> bool;

    /// Sets the route: a signal of [`Self::eventfd`] writes the message `data` to `address` from now on.
    ///
    /// # Errors
    /// When the hypervisor refuses the route. Whether the former route remains is then unspecified.
    fn route(&self, address: u64, data: u32) -> io::Result<()>;

    /// Removes the route: a signal of [`Self::eventfd`] is pending from now on.
    ///
    /// # Errors
    /// When the hypervisor refuses.
    fn unroute(&self) -> io::Result<()>;
}

/// The hypervisor, as a device sees it.
pub trait Hypervisor: Send + Sync {
    /// A new vector, without a route.
    ///
    /// # Errors
    /// When the hypervisor has no more interrupt routes, or the process no more descriptors.
    fn msi_vector(&self) -> io::Result<Arc<dyn MsiVector>>;

    /// Binds a doorbell: a guest's write of any length at guest physical `address` signals `fd`, and does not reach the
    /// bus.
    ///
    /// # Errors
    /// When the address has a doorbell, or the hypervisor refuses.
    fn bind_doorbell(&self, address: u64, fd: &EventFd) -> io::Result<()>;

    /// Removes the doorbell that [`Self::bind_doorbell`] bound.
    ///
    /// # Errors
    /// When `fd` was not bound there.
    fn unbind_doorbell(&self, address: u64, fd: &EventFd) -> io::Result<()>;
}
