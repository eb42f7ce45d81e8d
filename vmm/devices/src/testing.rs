//! A hypervisor for unit tests, which records what devices ask of it.

use std::io;
use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::hypervisor::{Hypervisor, MsiVector};

pub(crate) struct RecordedVector {
    eventfd: EventFd,
    pub(crate) route: Mutex<Option<(u64, u32)>>,
    /// How often the route was set or removed.
    pub(crate) changes: Mutex<u32>,
}

impl MsiVector for RecordedVector {
    fn eventfd(&self) -> &EventFd {
        &self.eventfd
    }

    fn signal(&self) {
        self.eventfd.write(1).unwrap();
    }

    fn is_pending(&self) -> bool {
        let pending = self.eventfd.read().is_ok();
        if pending {
            self.signal();
        }
        pending
    }

    fn route(&self, address: u64, data: u32) -> io::Result<()> {
        *self.changes.lock().unwrap() += 1;
        // KVM accepts messages to local APICs.
        if address >> 20 != 0xfee {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        *self.route.lock().unwrap() = Some((address, data));
        Ok(())
    }

    fn unroute(&self) -> io::Result<()> {
        *self.changes.lock().unwrap() += 1;
        *self.route.lock().unwrap() = None;
        Ok(())
    }
}

impl RecordedVector {
    /// Takes the signals as KVM does, and returns the message that they become.
    pub(crate) fn deliver(&self) -> Option<(u64, u32)> {
        let route = (*self.route.lock().unwrap())?;
        self.eventfd.read().ok().map(|_| route)
    }
}

#[derive(Default)]
pub(crate) struct RecordingHypervisor {
    pub(crate) vectors: Mutex<Vec<Arc<RecordedVector>>>,
    /// Address and a clone of the eventfd.
    pub(crate) doorbells: Mutex<Vec<(u64, EventFd)>>,
}

impl RecordingHypervisor {
    pub(crate) fn vector(&self, number: usize) -> Arc<RecordedVector> {
        self.vectors.lock().unwrap()[number].clone()
    }

    pub(crate) fn doorbell_addresses(&self) -> Vec<u64> {
        let doorbells = self.doorbells.lock().unwrap();
        doorbells.iter().map(|(address, _)| *address).collect()
    }

    /// A guest's write, which signals the doorbell's eventfd if there is one.
    pub(crate) fn write_doorbell(&self, address: u64) -> bool {
        let doorbells = self.doorbells.lock().unwrap();
        let doorbell = doorbells.iter().find(|(at, _)| *at == address);
        doorbell.is_some_and(|(_, fd)| fd.write(1).is_ok())
    }
}

impl Hypervisor for RecordingHypervisor {
    fn msi_vector(&self) -> io::Result<Arc<dyn MsiVector>> {
        let vector = Arc::new(RecordedVector {
            eventfd: EventFd::new(EFD_NONBLOCK)?,
            route: Mutex::new(None),
            changes: Mutex::new(0),
        });
        self.vectors.lock().unwrap().push(vector.clone());
        Ok(vector)
    }

    fn bind_doorbell(&self, address: u64, fd: &EventFd) -> io::Result<()> {
        let mut doorbells = self.doorbells.lock().unwrap();
        if doorbells.iter().any(|(at, _)| *at == address) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        doorbells.push((address, fd.try_clone()?));
        Ok(())
    }

    fn unbind_doorbell(&self, address: u64, _fd: &EventFd) -> io::Result<()> {
        let mut doorbells = self.doorbells.lock().unwrap();
        let at = doorbells.iter().position(|(at, _)| *at == address);
        doorbells.remove(at.ok_or(io::ErrorKind::NotFound)?);
        Ok(())
    }
}
