//! KVM as the hypervisor that devices see.

use std::io;
use std::sync::Arc;

use bulkhead_devices::{Hypervisor, MsiVector};
use bulkhead_kvm::{Doorbells, Interrupt, Interrupts};
use vmm_sys_util::eventfd::EventFd;

/// The machine's interrupts and doorbells.
pub(crate) struct Kvm {
    pub(crate) interrupts: Arc<Interrupts>,
    pub(crate) doorbells: Doorbells,
}

impl Hypervisor for Kvm {
    fn msi_vector(&self) -> io::Result<Arc<dyn MsiVector>> {
        let interrupt = self.interrupts.allocate().map_err(io::Error::other)?;
        Ok(Arc::new(Vector(interrupt)))
    }

    fn bind_doorbell(&self, address: u64, fd: &EventFd) -> io::Result<()> {
        self.doorbells.bind(address, fd).map_err(io::Error::other)
    }

    fn unbind_doorbell(&self, address: u64, fd: &EventFd) -> io::Result<()> {
        self.doorbells.unbind(address, fd).map_err(io::Error::other)
    }
}

struct Vector(Interrupt);

impl MsiVector for Vector {
    fn eventfd(&self) -> &EventFd {
        self.0.eventfd()
    }

    fn signal(&self) {
        self.0.signal();
    }

    fn is_pending(&self) -> bool {
        self.0.is_pending()
    }

    fn route(&self, address: u64, data: u32) -> io::Result<()> {
        self.0.route(address, data).map_err(io::Error::other)
    }

    fn unroute(&self) -> io::Result<()> {
        self.0.unroute().map_err(io::Error::other)
    }
}
