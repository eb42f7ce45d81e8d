//! Configuration change interrupts, which the transport raises itself. Those of queues are raised by the backend,
//! through the vectors' eventfds.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::DeviceEvents;
use crate::hypervisor::MsiVector;
use crate::pci::{Msix, NO_VECTOR};

/// The ISR status register's configuration bit.
const ISR_CONFIG: u8 = 1 << 1;

/// What a queue without a vector (VIRTIO_MSI_NO_VECTOR) has in place of one: its signals interrupt nobody.
struct NoVector(EventFd);

impl MsiVector for NoVector {
    fn eventfd(&self) -> &EventFd {
        &self.0
    }

    fn signal(&self) {}

    fn is_pending(&self) -> bool {
        false
    }

    fn route(&self, _address: u64, _data: u32) -> io::Result<()> {
        Ok(())
    }

    fn unroute(&self) -> io::Result<()> {
        Ok(())
    }
}

/// It has no lock, so a device can report a change while a vCPU holds one of the function's locks.
pub(super) struct Interrupts {
    pub(super) msix: Msix,
    no_vector: Arc<NoVector>,
    config_vector: AtomicU16,
    isr: AtomicU8,
    generation: AtomicU8,
    needs_reset: AtomicBool,
}

impl Interrupts {
    pub(super) fn new(msix: Msix) -> io::Result<Self> {
        let no_vector = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        Ok(Self {
            msix,
            no_vector: Arc::new(NoVector(no_vector)),
            config_vector: AtomicU16::new(NO_VECTOR),
            isr: AtomicU8::new(0),
            generation: AtomicU8::new(0),
            needs_reset: AtomicBool::new(false),
        })
    }

    /// The value a vector register reads back: NO_VECTOR for a vector that does not exist (virtio 1.2 §4.1.5.1.2).
    pub(super) fn valid(&self, vector: u16) -> u16 {
        if vector < self.msix.count() {
            vector
        } else {
            NO_VECTOR
        }
    }

    pub(super) fn vector(&self, vector: u16) -> Arc<dyn MsiVector> {
        let real = self.msix.vector(vector);
        real.unwrap_or_else(|| self.no_vector.clone())
    }

    pub(super) fn config_vector(&self) -> u16 {
        self.config_vector.load(Ordering::Acquire)
    }

    pub(super) fn set_config_vector(&self, vector: u16) {
        let vector = self.valid(vector);
        self.config_vector.store(vector, Ordering::Release);
    }

    pub(super) fn generation(&self) -> u8 {
        self.generation.load(Ordering::Acquire)
    }

    /// Reads and clears the ISR status.
    pub(super) fn take_isr(&self) -> u8 {
        self.isr.swap(0, Ordering::AcqRel)
    }

    pub(super) fn is_reset_needed(&self) -> bool {
        self.needs_reset.load(Ordering::Acquire)
    }

    /// Resets all but the configuration's generation, which never goes back.
    pub(super) fn reset(&self) {
        self.config_vector.store(NO_VECTOR, Ordering::Release);
        self.isr.store(0, Ordering::Release);
        self.needs_reset.store(false, Ordering::Release);
    }

    fn notify(&self) {
        self.isr.fetch_or(ISR_CONFIG, Ordering::AcqRel);
        self.msix.signal(self.config_vector());
    }
}

impl DeviceEvents for Interrupts {
    fn config_changed(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.notify();
    }

    fn needs_reset(&self) {
        self.needs_reset.store(true, Ordering::Release);
        self.notify();
    }
}
