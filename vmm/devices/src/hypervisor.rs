//! What devices need of a hypervisor: interrupts that are eventfds, and doorbells that are eventfds.

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

/// One message-signalled interrupt, triggered by an eventfd without the monitor's help.
pub trait MsiVector: Send + Sync {
    /// The eventfd by which a backend raises the interrupt while a route is set. It is the same one for the vector's whole life,
    /// so that a backend may keep it. While no route is set, signals stay in its counter, and setting a
    /// route delivers them.
    ///
    /// A backend that has it can fill it and make it block, so the monitor neither reads nor writes it.
    fn eventfd(&self) -> &EventFd;

    /// Raises the interrupt like a signal on [`Self::eventfd`]. Never waits.
    fn signal(&self);

    /// Whether a signal waits for a route. Never waits itself.
    fn is_pending(&self) -> bool;

    /// From now on a signal on [`Self::eventfd`] sends the message `data` to `address`.
    ///
    /// # Errors
    /// When the hypervisor refuses the route; the former route, if there was one, is then unspecified.
    fn route(&self, address: u64, data: u32) -> io::Result<()>;

    /// From now on a signal on [`Self::eventfd`] interrupts nobody and remains readable from it.
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

    /// From now on a guest write of any length at guest physical `address` signals `fd` and does not reach the bus.
    ///
    /// # Errors
    /// When the address is taken, or the hypervisor refuses.
    fn bind_doorbell(&self, address: u64, fd: &EventFd) -> io::Result<()>;

    /// Undoes [`Self::bind_doorbell`].
    ///
    /// # Errors
    /// When `fd` was not bound there.
    fn unbind_doorbell(&self, address: u64, fd: &EventFd) -> io::Result<()>;
}
